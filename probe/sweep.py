"""A sweep over the members of a protocol: choose on a held-out part of train, then fit on all of it.

The selection of arXiv 2601.09322, except that the held-out features are clean: in the published runs they
carried the jitter of the training part.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probe.heads import HeadInfo
from featcache.probe.heads.base import Head
from featcache.probe.metrics import balanced_accuracy
from featcache.probe.protocol import Member, Plan, Protocol, batch_size, plan_training
from featcache.probe.split import stratified_holdout
from featcache.probe.tokens import TokenSource
from featcache.probe.trainer import fit_members, predict
from featcache.store.errors import RequestError

# What the members that train together may take for parameters, gradients and Adam's two moments.
GROUP_BYTES = 2 * 1024**3
BYTES_PER_PARAMETER = 4 * 4

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class SweepResult:
    """The outcome of one sweep."""

    member: Member
    """The chosen one."""
    validation: dict[Member, float]
    """Balanced accuracy on the held-out part for every member, in the order of the protocol."""
    head: Head
    """Fitted on all of train, in eval mode."""
    num_parameters: int
    num_classes: int
    tuning: Plan
    final: Plan
    seconds: float
    """Wall time of the sweep and the final fit."""


def run_sweep(
    head_info: HeadInfo,
    tokens: TokenSource,
    labels: npt.NDArray[np.integer],
    *,
    protocol: Protocol,
    seed: int,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
    group_size: int | None = None,
    on_progress: OnProgress | None = None,
) -> SweepResult:
    """Choose the best member of `protocol` for a head and fit it on the whole train split.

    Args:
        head_info: the head.
        tokens: the train split, N samples. The test split has no business here.
        labels: class indices, ``[N]``.
        protocol: the members and all constants.
        seed: fixes split, initialisation, order, jitter and dropout.
        num_classes: C; by default the largest label + 1.
        device: where to train; the tokens may live elsewhere.
        group_size: how many members train together, which bounds memory and changes no result; by default as
            many as fit into 2 GiB.
        on_progress: called with the updates done and to be done, counted over members, sweep and final fit.

    Raises:
        RequestError: labels that do not fit, a train split too small to hold anything out, or a head that cannot
            have this size.
    """
    start = time.perf_counter()
    labels, num_classes = _check_labels(labels, tokens.num_samples, num_classes)
    train_rows, held_rows = _split(labels, protocol, seed)
    all_rows = torch.arange(tokens.num_samples)
    size = batch_size(tokens.num_samples, protocol)
    tuning, final = (plan_training(len(rows), size, protocol) for rows in (train_rows, all_rows))
    members = protocol.members(head_info.has_dropout)
    num_parameters = _count_parameters(head_info, tokens, num_classes)
    report = _counter(on_progress, tuning.num_steps * len(members) + final.num_steps)
    targets = torch.from_numpy(labels)
    fit = partial(
        fit_members,
        head_info.build,
        tokens,
        targets,
        protocol=protocol,
        batch_size=size,
        seed=seed,
        num_classes=num_classes,
        device=device,
        on_step=report,
    )
    validation: dict[Member, float] = {}
    # Group by group, so that only one group's heads are alive.
    for group in _groups(members, group_size, num_parameters):
        for member, head in zip(group, fit(train_rows, group), strict=True):
            logits = predict(head, tokens, held_rows, size)
            held_labels = targets[held_rows].to(logits.device)
            validation[member] = balanced_accuracy(logits, held_labels, num_classes)
    chosen = select_best(validation)
    (head,) = fit(all_rows, [chosen])
    seconds = time.perf_counter() - start
    return SweepResult(chosen, validation, head, num_parameters, num_classes, tuning, final, seconds)


def select_best(validation: dict[Member, float]) -> Member:
    """Return the member with the best score; a tie keeps the earlier one."""
    return max(validation, key=lambda member: validation[member])


def _check_labels(
    labels: npt.NDArray[np.integer], num_samples: int, num_classes: int | None
) -> tuple[npt.NDArray[np.int64], int]:
    labels = np.asarray(labels)
    if labels.shape != (num_samples,):
        raise RequestError(f"{num_samples} samples need labels of shape ({num_samples},), not {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise RequestError(f"labels must be class indices (integers), not {labels.dtype}")
    if num_samples < 2:
        raise RequestError(f"a sweep needs at least 2 samples, not {num_samples}")
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0 or (num_classes is not None and largest >= num_classes):
        limit = "" if num_classes is None else f" to {num_classes - 1}"
        raise RequestError(
            f"class indices count from 0{limit}, but the labels run from {smallest} to {largest}"
        )
    return labels.astype(np.int64), largest + 1 if num_classes is None else num_classes


def _split(labels: npt.NDArray[np.int64], protocol: Protocol, seed: int) -> tuple[Tensor, Tensor]:
    train_rows, held_rows = stratified_holdout(labels, protocol.validation_fraction, seed)
    if not len(held_rows):
        raise RequestError(
            f"a train split of {len(labels)} samples leaves nothing to hold out for the choice of hyperparameters "
            "(a class keeps its last sample); use a larger one"
        )
    return torch.from_numpy(train_rows), torch.from_numpy(held_rows)


def _count_parameters(head_info: HeadInfo, tokens: TokenSource, num_classes: int) -> int:
    # On the meta device nothing is allocated and nothing is drawn.
    with torch.device("meta"):
        head = head_info.build(tokens.num_tokens, tokens.width, num_classes)
    return sum(parameter.numel() for parameter in head.parameters())


def _groups(members: Sequence[Member], group_size: int | None, num_parameters: int) -> list[Sequence[Member]]:
    size = group_size or max(1, GROUP_BYTES // (BYTES_PER_PARAMETER * num_parameters))
    return [members[start : start + size] for start in range(0, len(members), size)]


def _counter(on_progress: OnProgress | None, total: int) -> Callable[[int], None]:
    done = 0

    def count(steps: int) -> None:
        nonlocal done
        done += steps
        if on_progress is not None:
            on_progress(done, total)

    return count
