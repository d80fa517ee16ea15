"""A sweep over the members of a protocol: choose on a held-out part of train, then fit on all of it.

The selection of arXiv 2601.09322, except that the held-out features are clean: in the published runs they
carried the jitter of the training part.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probe.heads.base import Head
from featcache.probe.metrics import balanced_accuracy
from featcache.probe.precision import FP32
from featcache.probe.protocol import Member, Plan, Protocol, batch_size, plan_training
from featcache.probe.split import stratified_holdout
from featcache.probe.tokens import TokenSource
from featcache.probe.trainer import BuildHead, divide, fit_members, members_together, num_parameters, predict
from featcache.store.errors import RequestError

# Bytes that a parameter takes while its member trains: itself and Adam's two moments; its gradient is one of few at a time.
BYTES_PER_PARAMETER = 3 * 4

OnProgress = Callable[[int, int], None]
OnGroup = Callable[[Mapping[Member, float]], None]


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep runs. Nothing here changes what members are trained, only rounding and what it takes."""

    device: torch.device | str = "cpu"
    """Where to train; the tokens may live elsewhere."""
    precision: str = FP32
    """Of matrix products, ``fp32`` or ``bf16``."""
    group_size: int | None = None
    """How many members train together at most; by default as many as fit into `memory`."""
    memory: int = 2**31
    """Bytes for the members that train together."""
    finished: Mapping[Member, float] = field(default_factory=dict)
    """Validation scores of members that an earlier run trained: they are not trained again."""
    on_group: OnGroup | None = None
    """Called with the validation scores of all members so far, whenever a group is through."""
    on_progress: OnProgress | None = None
    """Called with the updates done and to be done, counted over members, sweep and final fit."""


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


@dataclass(frozen=True)
class Sweep:
    """A sweep, planned: which rows train and which choose, and how long every training is."""

    build: BuildHead
    tokens: TokenSource
    targets: Tensor
    """``[N]``, int64."""
    num_classes: int
    protocol: Protocol
    members: tuple[Member, ...]
    seed: int
    train_rows: Tensor
    held_rows: Tensor
    batch_size: int
    tuning: Plan
    final: Plan
    num_parameters: int
    """Of one member."""


def plan_sweep(
    build: BuildHead,
    tokens: TokenSource,
    labels: npt.NDArray[np.integer],
    *,
    protocol: Protocol,
    has_dropout: bool,
    seed: int,
    num_classes: int | None = None,
) -> Sweep:
    """Plan the choice of the best member of `protocol` and its fit on the whole train split.

    Args:
        build: makes a head of T, D, C and the members' dropouts.
        tokens: the train split, N samples. The test split has no business here.
        labels: class indices, ``[N]``.
        protocol: the members and all constants.
        has_dropout: whether the head has; otherwise the dropouts of the protocol do not multiply its members.
        seed: fixes split, initialisation, order, jitter and dropout.
        num_classes: C; by default the largest label + 1.

    Raises:
        RequestError: labels that do not fit, a train split too small to hold anything out, or a head that cannot
            have this size.
    """
    labels, num_classes = _check_labels(labels, tokens.num_samples, num_classes)
    train_rows, held_rows = _split(labels, protocol, seed)
    size = batch_size(tokens.num_samples, protocol)
    return Sweep(
        build=build,
        tokens=tokens,
        targets=torch.from_numpy(labels),
        num_classes=num_classes,
        protocol=protocol,
        members=protocol.members(has_dropout),
        seed=seed,
        train_rows=train_rows,
        held_rows=held_rows,
        batch_size=size,
        tuning=plan_training(len(train_rows), size, protocol),
        final=plan_training(tokens.num_samples, size, protocol),
        num_parameters=num_parameters(build, tokens, num_classes),
    )


def run_sweep(sweep: Sweep, options: SweepOptions | None = None) -> SweepResult:
    """Choose the best member on the held-out part, then fit it on all of train."""
    options = options or SweepOptions()
    start = time.perf_counter()
    validation = {member: score for member, score in options.finished.items() if member in sweep.members}
    left = [member for member in sweep.members if member not in validation]
    report = _counter(options.on_progress, sweep, len(validation))
    fit = partial(
        fit_members,
        sweep.build,
        sweep.tokens,
        sweep.targets,
        protocol=sweep.protocol,
        batch_size=sweep.batch_size,
        seed=sweep.seed,
        num_classes=sweep.num_classes,
        device=options.device,
        precision=options.precision,
        on_step=report,
    )
    # Group by group, so that only one group's heads are alive.
    for group in divide(left, group_size(sweep, options)):
        for member, head in zip(group, fit(sweep.train_rows, group), strict=True):
            validation[member] = _validate(sweep, head)
        if options.on_group is not None:
            options.on_group(validation)
    validation = {member: validation[member] for member in sweep.members}
    chosen = select_best(validation)
    (head,) = fit(torch.arange(sweep.tokens.num_samples), [chosen])
    return SweepResult(
        chosen,
        validation,
        head,
        sweep.num_parameters,
        sweep.num_classes,
        sweep.tuning,
        sweep.final,
        time.perf_counter() - start,
    )


def group_size(sweep: Sweep, options: SweepOptions) -> int:
    """How many members train together."""
    if options.group_size is not None:
        return options.group_size
    together = members_together(sweep.build, sweep.tokens, sweep.num_classes, torch.device(options.device))
    fitting = options.memory // (BYTES_PER_PARAMETER * sweep.num_parameters)
    # Full heads, where more than one of them fits.
    return max(1, fitting // together * together if fitting > together else fitting)


def select_best(validation: dict[Member, float]) -> Member:
    """Return the member with the best score; a tie keeps the earlier one."""
    return max(validation, key=lambda member: validation[member])


def _validate(sweep: Sweep, head: Head) -> float:
    logits = predict(head, sweep.tokens, sweep.held_rows, sweep.batch_size)
    labels = sweep.targets[sweep.held_rows].to(logits.device)
    return balanced_accuracy(logits, labels, sweep.num_classes)


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


def _counter(on_progress: OnProgress | None, sweep: Sweep, finished: int) -> Callable[[int], None]:
    done = sweep.tuning.num_steps * finished
    total = sweep.tuning.num_steps * len(sweep.members) + sweep.final.num_steps

    def count(steps: int) -> None:
        nonlocal done
        done += steps
        if on_progress is not None:
            on_progress(done, total)

    return count
