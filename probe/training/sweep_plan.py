"""A sweep before it runs: how train is divided for the choice, which members train, and for how long.

Shapes: N samples, T tokens, D width, C classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probing.inputs.grouped import Groups, grouped_folds, grouped_holdout
from featcache.probing.inputs.tokens import TokenSource
from featcache.probing.inputs.view_rows import Rows, rows_of_views
from featcache.probing.protocols.protocol import NO_FOLDS, Member, Plan, Protocol, batch_size, plan_training
from featcache.probing.scoring.tasks import Targets, Task, as_tensor, make_task
from featcache.probing.training.trainer import BuildHead, num_parameters
from featcache.store.errors import RequestError

Split = tuple[Tensor, Tensor]
"""Rows to train on and rows held out, int64, sorted."""


@dataclass(frozen=True)
class Round:
    """One round of a sweep."""

    num_members: int
    factor: float
    """Of the epochs of a whole training."""


@dataclass(frozen=True)
class Sweep:
    """A sweep, planned: which rows train and which choose, and how long every training is."""

    build: BuildHead
    tokens: TokenSource
    targets: Tensor
    """``[N]``, int64, or as the task has them."""
    task: Task
    protocol: Protocol
    members: tuple[Member, ...]
    seed: int
    splits: tuple[Split, ...]
    batch_size: int
    final: Plan
    num_parameters: int
    """Of one member."""

    @property
    def num_classes(self) -> int:
        """C, or outputs of a regression."""
        return self.task.num_outputs

    @property
    def train_rows(self) -> Tensor:
        """Those to train on, of the first split; all where nothing is held out."""
        return self.splits[0][0] if self.splits else torch.arange(self.tokens.num_samples)

    @property
    def held_rows(self) -> Tensor:
        """Those held out, split after split."""
        empty = torch.empty(0, dtype=torch.int64)
        return torch.cat([empty, *(held for _, held in self.splits)])

    @property
    def tuning(self) -> Plan:
        """Of the first split; those of others differ by a sample or so."""
        return self.plan(self.train_rows)

    def plan(self, rows: Tensor, factor: float = 1.0) -> Plan:
        """Return the plan of a training on some rows."""
        return plan_training(len(rows), self.batch_size, self.protocol).shortened(factor)

    @property
    def rounds(self) -> list[Round]:
        """The rounds of the sweep, the last one of whole trainings."""
        eta, number, factor = self.protocol.halving, len(self.members), 1.0
        factors = [factor]
        while (
            eta > 1
            and number >= eta
            and self.tuning.num_steps * factor / eta >= self.protocol.halving_min_steps
        ):
            number, factor = number // eta, factor / eta
            factors.insert(0, factor)
        counts = [len(self.members)]
        for _ in factors[1:]:
            counts.append(max(1, counts[-1] // eta))
        return [Round(count, factor) for count, factor in zip(counts, factors, strict=True)]

    @property
    def num_trainings(self) -> int:
        """Trainings of members over all rounds, each over all splits."""
        return sum(each.num_members for each in self.rounds)

    def updates(self, factor: float) -> int:
        """Return the updates of one member in a round, over all splits."""
        return sum(self.plan(rows, factor).num_steps for rows, _ in self.splits)


def plan_sweep(
    build: BuildHead,
    tokens: TokenSource,
    labels: npt.NDArray[Any],
    *,
    protocol: Protocol,
    has_dropout: bool,
    seed: int,
    num_classes: int | None = None,
    task: Task | None = None,
    sample_groups: Groups | None = None,
) -> Sweep:
    """Plan the choice of the best member of `protocol` and its fit on the whole train split.

    Args:
        build: makes a head of T, D, C and the members' dropouts.
        tokens: the train split, N samples. The test split has no business here.
        labels: class indices ``[N]``, or other targets, as `make_task` takes them.
        protocol: the members and all constants.
        has_dropout: whether the head has; otherwise the dropouts of the protocol do not multiply its members.
        seed: fixes split, initialization, order, jitter and dropout.
        num_classes: C; by default the largest label + 1.
        task: what the targets are; by default what `make_task` makes of them.
        sample_groups: group of every sample ``[N]``; samples of one group are held out together.

    Raises:
        RequestError: labels that do not fit, a train split too small to hold anything out, or a head that cannot
            have this size.
    """
    if task is None:
        task, labels = make_task(np.asarray(labels), num_outputs=num_classes)
    check_number(labels, tokens.num_samples)
    splits = make_splits(labels, task, protocol, seed, sample_groups, tokens.num_views)
    size = batch_size(tokens.num_samples, protocol)
    return Sweep(
        build=build,
        tokens=tokens,
        targets=as_tensor(labels),
        task=task,
        protocol=protocol,
        members=protocol.members(has_dropout),
        seed=seed,
        splits=splits,
        batch_size=size,
        final=plan_training(tokens.num_samples, size, protocol),
        num_parameters=num_parameters(build, tokens, task.num_outputs),
    )


def check_number(labels: Targets, num_samples: int) -> None:
    """Refuse targets that are not one for each sample, and fewer samples than can be divided.

    Raises:
        RequestError: saying so.
    """
    if len(labels) != num_samples:
        raise RequestError(
            f"{num_samples} samples need labels of shape ({num_samples},), not {labels.shape}"
            if labels.ndim == 1
            else f"{num_samples} samples need as many targets, not {len(labels)}"
        )
    if num_samples < 2:
        raise RequestError(f"a sweep needs at least 2 samples, not {num_samples}")


def make_splits(
    labels: Targets,
    task: Task,
    protocol: Protocol,
    seed: int,
    sample_groups: Groups | None = None,
    num_views: int = 1,
) -> tuple[Split, ...]:
    """Divide train for the choice: once, or into folds; not at all where the protocol holds nothing out.

    Args:
        labels: target of every row, view after view.
        task: what the targets are.
        protocol: how much is held out.
        seed: fixes the division, which is that of the samples: all views of a sample are on the same side.
        sample_groups: group of every sample ``[N]``.
        num_views: views of every sample.

    Raises:
        RequestError: nothing can be held out.
    """
    num_samples = len(labels) // num_views
    labels = labels[:num_samples]
    folds = protocol.num_folds(num_samples)
    if folds == NO_FOLDS:
        return ()
    if sample_groups is not None:
        pairs = (
            grouped_folds(labels, sample_groups, folds, seed)
            if folds > 1
            else [grouped_holdout(labels, sample_groups, protocol.validation_fraction, seed)]
        )
    elif folds > 1:
        pairs = task.folds(labels, folds, seed)
    else:
        pairs = [task.holdout(labels, protocol.validation_fraction, seed)]
        if not len(pairs[0][1]):
            raise RequestError(
                f"a train split of {len(labels)} samples leaves nothing to hold out for the choice of hyperparameters "
                "(a class keeps its last sample); use a larger one"
            )
    return tuple(
        (_rows(train, num_samples, num_views), _rows(held, num_samples, num_views)) for train, held in pairs
    )


def _rows(samples: Rows, num_samples: int, num_views: int) -> Tensor:
    return torch.from_numpy(rows_of_views(samples, num_samples, num_views))
