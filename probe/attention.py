"""Attention per layer and token kind: averaged over heads and test images, as numbers and as a heatmap."""

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from featcache.probe.heads.base import Head
from featcache.probe.request import Selection
from featcache.probe.tokens import TokenSource
from featcache.probe.trainer import prediction_batch
from featcache.store.files import write_atomic

HEATMAP_FILE = "attention.png"


@torch.inference_mode()
def mean_attention(head: Head, tokens: TokenSource, selection: Selection) -> npt.NDArray[np.float64]:
    """Average the attention weights over heads and samples, and add up those of a layer's patches.

    Args:
        head: a trained head that has attention, of one member.
        tokens: N samples of T tokens.
        selection: the L layers and K token kinds that the T tokens are.

    Returns:
        ``[L, K]``, summing to 1; NaN where a layer has no such token.
    """
    device = next(head.parameters()).device
    tokens = tokens.with_stage(head.stage)
    total = torch.zeros(tokens.num_tokens, dtype=torch.float64)
    for rows in torch.split(torch.arange(tokens.num_samples), prediction_batch(tokens)):
        # [1, B, H, T] -> [T]
        weights = head.attention(tokens.batch(rows).to(device))
        total += weights.cpu().double().mean(2).sum((0, 1))
    mean = np.full((len(selection.layers), len(selection.kinds)), np.nan)
    for (layer, kind), weight in zip(selection.places(), (total / tokens.num_samples).tolist(), strict=True):
        place = selection.layers.index(layer), selection.kinds.index(kind)
        mean[place] = weight if np.isnan(mean[place]) else mean[place] + weight
    return mean


def save_attention(
    directory: Path, weights: npt.NDArray[np.float64], selection: Selection, title: str
) -> None:
    """Write attention.json and attention.png.

    Args:
        directory: where to write.
        weights: ``[L, K]``.
        selection: names of the L layers and K token kinds.
        title: what the plot shows.
    """
    listed = [[None if np.isnan(value) else round(value, 6) for value in row] for row in weights.tolist()]
    document = {"layers": selection.layers, "tokens": selection.kinds, "weights": listed}
    write_atomic(directory / "attention.json", json.dumps(document, indent=1).encode() + b"\n")
    write_atomic(directory / HEATMAP_FILE, _heatmap(weights, selection, title))


def _heatmap(weights: npt.NDArray[np.float64], selection: Selection, title: str) -> bytes:
    # Not pyplot: it keeps global state and may look for a display.
    from matplotlib.figure import Figure

    num_layers, num_kinds = weights.shape
    figure = Figure(figsize=(max(4.5, 0.55 * num_layers + 2.0), 0.5 * num_kinds + 1.5), layout="constrained")
    axes = figure.subplots()
    percent = 100 * weights.T
    image = axes.imshow(percent, cmap="viridis", vmin=0, aspect="auto")
    axes.set_xticks(range(num_layers), selection.layers)
    axes.set_yticks(range(num_kinds), [kind.upper() for kind in selection.kinds])
    axes.set_xlabel("layer")
    axes.set_title(title, fontsize=9)
    for (kind, layer), value in np.ndenumerate(percent):
        if np.isnan(value):
            continue
        light = value < 0.6 * np.nanmax(percent)
        axes.text(
            layer,
            kind,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if light else "black",
        )
    figure.colorbar(image, ax=axes, label="attention, %")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
