"""A head chosen and fitted on tokens in memory: no cache, no results, nothing on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featcache.probe.fitting import step_threads
from featcache.probe.heads import HeadInfo
from featcache.probe.heads.base import Head
from featcache.probe.precision import choose_precision
from featcache.probe.process import threads
from featcache.probe.protocol import Protocol
from featcache.probe.sweep import SweepOptions, plan_sweep, run_sweep
from featcache.probe.tokens import TokenSource


@dataclass(frozen=True)
class ArrayFit:
    """A fitted head and how it was chosen."""

    head: Head
    """Of one member, in eval mode."""
    chosen: Mapping[str, float]
    """The settings that validation chose."""
    validation: float
    """Their score on the held-out part."""


def fit_array(
    info: HeadInfo,
    tokens: TokenSource,
    labels: npt.NDArray[np.integer],
    *,
    num_classes: int,
    protocol: Protocol,
    seed: int,
    options: Mapping[str, Any],
    device: torch.device | str = "cpu",
    precision: str = "auto",
) -> ArrayFit:
    """Choose the settings of a head on a held-out part, then fit it on everything.

    Args:
        info: the head.
        tokens: N samples.
        labels: class indices ``[N]``.
        num_classes: C.
        protocol: what is swept over, and all other constants.
        seed: fixes everything that is drawn.
        options: what the head takes besides its size.
        device: where to train.
        precision: of matrix products.

    Raises:
        RequestError: labels that do not fit, too few samples to hold anything out, or a head that cannot have this size.
    """
    device = torch.device(device)
    sweep = plan_sweep(
        lambda *size: info.build(*size, **options),
        tokens,
        labels,
        protocol=protocol,
        has_dropout=info.has_dropout,
        seed=seed,
        num_classes=num_classes,
    )
    with threads(step_threads(sweep)):
        result = run_sweep(sweep, SweepOptions(device, choose_precision(precision, device)))
    member = result.member
    chosen = {"learning_rate": member.learning_rate, "weight_decay": member.weight_decay}
    if info.has_dropout:
        chosen["dropout"] = member.dropout
    return ArrayFit(result.head, chosen, result.validation[member])
