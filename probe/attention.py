"""Attention per layer and token kind: averaged over heads and test images, of all and of each class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from featcache.probing.heads.base import Head
from featcache.probing.inputs.selection import Selection
from featcache.probing.inputs.tokens import TokenSource
from featcache.probing.plots.attention import attention_figure
from featcache.probing.plots.style import save
from featcache.probing.results.records import AttentionRecord, save_attention_record
from featcache.probing.training.prediction import prediction_batch

HEATMAP_FILE = "attention.png"


@torch.inference_mode()
def mean_attention(
    head: Head,
    tokens: TokenSource,
    selection: Selection,
    labels: npt.NDArray[np.int64] | None = None,
    class_names: Sequence[str] = (),
) -> AttentionRecord:
    """Average the attention weights over heads and samples, and add up those of a layer's patches.

    Args:
        head: a trained head that has attention, of one member.
        tokens: N samples of T tokens.
        selection: the L layers and K token kinds that the T tokens are.
        labels: ``[N]``, for the averages of each class; None where samples have no single class.
        class_names: C names in label order.
    """
    device = next(head.parameters()).device
    tokens = tokens.with_transform(head.input_transform)
    of = torch.zeros(tokens.num_samples, dtype=torch.int64) if labels is None else torch.from_numpy(labels)
    num_classes = 1 if labels is None else len(class_names)
    total = torch.zeros(num_classes, tokens.num_tokens, dtype=torch.float64)
    for rows in torch.split(torch.arange(tokens.num_samples), prediction_batch(tokens)):
        # [1, B, H, T] -> [B, T]
        weights = head.attention(tokens.batch(rows).to(device)).cpu().double().mean(2).squeeze(0)
        total.index_add_(0, of[rows], weights)
    counts = torch.bincount(of, minlength=num_classes).double()
    return AttentionRecord(
        layers=selection.layers,
        tokens=selection.kinds,
        weights=_by_place((total.sum(0) / counts.sum()).numpy(), selection),
        class_names=class_names,
        by_class=None
        if labels is None
        # A class without images is 0 / 0, NaN.
        else np.stack([_by_place(mean, selection) for mean in (total / counts[:, None]).numpy()]),
    )


def _by_place(weights: npt.NDArray[np.float64], selection: Selection) -> npt.NDArray[np.float64]:
    """Sum weights ``[T]`` to ``[L, K]``; NaN where a layer has no such token."""
    mean = np.full((len(selection.layers), len(selection.kinds)), np.nan)
    for (layer, kind), weight in zip(selection.places(), weights.tolist(), strict=True):
        place = selection.layers.index(layer), selection.kinds.index(kind)
        mean[place] = weight if np.isnan(mean[place]) else mean[place] + weight
    return mean


def save_attention(directory: Path, record: AttentionRecord, title: str) -> None:
    """Write attention.json and attention.png; `featcache plot` draws it in other ways."""
    save_attention_record(directory, record)
    figure = attention_figure(record.weights, record.layers, record.tokens, title)
    save(figure, directory / "attention", (".png",))
