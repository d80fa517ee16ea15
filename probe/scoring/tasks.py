"""Kinds of targets, and what follows from each: the loss, the score that a sweep chooses by, how train is divided.

Shapes: N samples, C classes, O outputs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from featcache.probing.inputs.label_sets import label_set_folds, label_set_holdout
from featcache.probing.inputs.split import (
    Rows,
    plain_folds,
    plain_holdout,
    stratified_folds,
    stratified_holdout,
)
from featcache.probing.inputs.transforms import OutputScale
from featcache.probing.scoring import metrics
from featcache.probing.scoring.kinds import KINDS, MULTI_LABEL, REGRESSION, REGRESSION_LOSSES, SINGLE_LABEL
from featcache.probing.scoring.losses import (
    CrossEntropy,
    Loss,
    absolute_error,
    binary_cross_entropy,
    squared_error,
)
from featcache.probing.scoring.soundness import DIVERGED, is_sound
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.targets import MAX_CLASSES

Targets = npt.NDArray[Any]
LEAST_REGRESSION = 4
"""Fewest samples that can be split for a choice: two to train on, and two to choose with, since R2 needs two."""


class Task(ABC):
    """One kind of target, of one size."""

    kind: ClassVar[str]
    metric: ClassVar[str]
    """Name of the score that a sweep chooses by."""
    num_outputs: int

    @abstractmethod
    def loss(self, targets: Tensor, device: torch.device | str = "cpu") -> Loss:
        """Make the loss for training on `device`, on samples with these targets, already mapped by `scale`."""

    def scale(self, targets: Tensor) -> OutputScale | None:
        """Measure the targets that are trained on, where they have a unit."""
        return None

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Score outputs ``[N, O]`` by `metric`; more is better."""

    @abstractmethod
    def scores(self, outputs: Tensor, targets: Tensor) -> metrics.Report:
        """Score outputs ``[N, O]`` in every way."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Map outputs ``[..., O]`` to what heads are averaged by."""
        return outputs

    def logits(self, probabilities: Tensor) -> Tensor:
        """The reverse of `probabilities`."""
        return probabilities

    def average(self, outputs: Tensor) -> Tensor:
        """Average outputs ``[V, N, O]`` over views: probabilities where there are any; returns ``[N, O]``."""
        return outputs.mean(0)

    def holdout(self, targets: Targets, fraction: float, seed: int) -> tuple[Rows, Rows]:
        """Divide samples into those to train on and those held out."""
        return plain_holdout(len(targets), fraction, seed)

    def folds(self, targets: Targets, number: int, seed: int) -> list[tuple[Rows, Rows]]:
        """Divide samples so often that each is held out once."""
        return plain_folds(len(targets), number, seed)


@dataclass(frozen=True)
class SingleLabel(Task):
    """Every sample has one class; targets ``[N]``, int64."""

    num_outputs: int
    kind: ClassVar[str] = SINGLE_LABEL
    metric: ClassVar[str] = "balanced_accuracy"

    def loss(self, targets: Tensor, device: torch.device | str = "cpu") -> Loss:
        """Cross-entropy, balanced over the classes of these targets."""
        return CrossEntropy(metrics.class_weights(targets, self.num_outputs).to(device))

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return balanced accuracy; `DIVERGED` for logits that are not finite."""
        if not is_sound(outputs, SINGLE_LABEL):
            return DIVERGED
        return metrics.balanced_accuracy(outputs, targets.to(outputs.device), self.num_outputs)

    def scores(self, outputs: Tensor, targets: Tensor) -> metrics.Report:
        """Those of a classifier."""
        return metrics.single_label_report(outputs, targets)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax."""
        return outputs.softmax(-1)

    def logits(self, probabilities: Tensor) -> Tensor:
        """Logarithm."""
        return probabilities.log()

    def average(self, outputs: Tensor) -> Tensor:
        """Return the logarithm of the mean probability, which is finite where a probability rounds to 0."""
        logs = outputs.double().log_softmax(-1)
        return (logs.logsumexp(0) - log(len(outputs))).to(outputs.dtype)

    def holdout(self, targets: Targets, fraction: float, seed: int) -> tuple[Rows, Rows]:
        """Class by class."""
        return stratified_holdout(targets, fraction, seed)

    def folds(self, targets: Targets, number: int, seed: int) -> list[tuple[Rows, Rows]]:
        """Class by class."""
        return stratified_folds(targets, number, seed)


@dataclass(frozen=True)
class MultiLabel(Task):
    """Every sample has any number of classes; targets ``[N, C]`` of 0 and 1, float32."""

    num_outputs: int
    kind: ClassVar[str] = MULTI_LABEL
    metric: ClassVar[str] = "mean_average_precision"

    def loss(self, targets: Tensor, device: torch.device | str = "cpu") -> Loss:
        """Binary cross-entropy."""
        return binary_cross_entropy

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean average precision."""
        return metrics.mean_average_precision(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> metrics.Report:
        """Those of C detectors."""
        return metrics.multi_label_report(outputs, targets)

    def holdout(self, targets: Targets, fraction: float, seed: int) -> tuple[Rows, Rows]:
        """Label by label, the rare ones first."""
        return label_set_holdout(targets, fraction, seed)

    def folds(self, targets: Targets, number: int, seed: int) -> list[tuple[Rows, Rows]]:
        """Label by label, the rare ones first."""
        return label_set_folds(targets, number, seed)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Sigmoid."""
        return outputs.sigmoid()

    def logits(self, probabilities: Tensor) -> Tensor:
        """Log odds."""
        return probabilities.logit(eps=1e-6)

    def average(self, outputs: Tensor) -> Tensor:
        """Return the log odds of the mean probability, which are finite where a probability rounds to 0 or 1."""
        logits = outputs.double()
        odds = logsigmoid(logits).logsumexp(0) - logsigmoid(-logits).logsumexp(0)
        return odds.to(outputs.dtype)


@dataclass(frozen=True)
class Regression(Task):
    """Every sample has O numbers; targets ``[N, O]``, float32. Heads are trained on standardised ones."""

    num_outputs: int
    loss_name: str = "mse"
    kind: ClassVar[str] = REGRESSION
    metric: ClassVar[str] = "r2"

    def loss(self, targets: Tensor, device: torch.device | str = "cpu") -> Loss:
        """Squared or absolute error."""
        return squared_error if self.loss_name == "mse" else absolute_error

    def scale(self, targets: Tensor) -> OutputScale:
        """Mean and deviation of every output."""
        return OutputScale.of(targets)

    def holdout(self, targets: Targets, fraction: float, seed: int) -> tuple[Rows, Rows]:
        """Hold out by lot, at least two samples if two remain, since a single sample has no R2."""
        return plain_holdout(len(targets), fraction, seed, least=2 if len(targets) >= LEAST_REGRESSION else 0)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean R2 over outputs."""
        return metrics.r2(outputs, targets)

    def scores(self, outputs: Tensor, targets: Tensor) -> metrics.Report:
        """Errors, R2 and rank correlation."""
        return metrics.regression_report(outputs, targets)


def make_task(
    targets: npt.NDArray[Any],
    kind: str | None = None,
    num_outputs: int | None = None,
    loss: str = "mse",
) -> tuple[Task, Targets]:
    """Find out what kind of targets these are, and bring them into its form.

    Args:
        targets: class indices ``[N]`` (integers), label sets ``[N, C]`` (0 and 1), or numbers ``[N]`` or ``[N, O]``.
        kind: ``single-label``, ``multi-label`` or ``regression``; by default, integers ``[N]`` are the first, integers
            and booleans ``[N, C]`` the second, floats the third.
        num_outputs: C of single-label targets; by default the largest label + 1.
        loss: of a regression, ``mse`` or ``mae``.

    Raises:
        RequestError: targets that are not of that kind.
        UnknownNameError: there is no such kind or loss.
    """
    targets = np.asarray(targets)
    kind = kind or kind_of(targets)
    if kind not in KINDS:
        raise UnknownNameError("kind of targets", kind, KINDS)
    if loss not in REGRESSION_LOSSES:
        raise UnknownNameError("regression loss", loss, REGRESSION_LOSSES)
    if kind == SINGLE_LABEL:
        return _single_label(targets, num_outputs)
    if targets.ndim == 1 and kind == REGRESSION:
        targets = targets[:, None]
    if targets.ndim != 2 or not targets.shape[1] or targets.dtype.kind not in "biuf":
        raise RequestError(
            f"{kind} targets must be numbers of shape [N, O], not {targets.dtype} of shape {targets.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(targets).all(1))
    if len(bad):
        raise RequestError(
            f"targets must be finite; {len(bad)} samples have others, the first is row {bad[0]}"
        )
    if kind == REGRESSION:
        with np.errstate(over="ignore"):  # reported below
            numbers = targets.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise RequestError(
                f"targets of a regression must be within float32, to {np.finfo(np.float32).max:.2g}, and the largest is "
                f"{np.abs(targets).max():.3g}; give them in a larger unit"
            )
        return Regression(targets.shape[1], loss), numbers
    if not np.isin(targets, (0, 1)).all():
        raise RequestError("multi-label targets must be 0 or 1, one column for every class")
    return MultiLabel(targets.shape[1]), targets.astype(np.float32)


def kind_of(targets: Targets) -> str:
    """The kind of targets that a type and a shape stand for: integers ``[N]``, integers ``[N, C]``, or floats."""
    if not (np.issubdtype(targets.dtype, np.integer) or targets.dtype == bool):
        return REGRESSION
    return SINGLE_LABEL if targets.ndim == 1 else MULTI_LABEL


def _single_label(labels: npt.NDArray[Any], num_classes: int | None) -> tuple[SingleLabel, Targets]:
    if labels.ndim != 1:
        raise RequestError(f"class indices must be of shape [N], not {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise RequestError(f"labels must be class indices (integers), not {labels.dtype}")
    if not len(labels):
        raise RequestError("there are no labels")
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0 or (num_classes is not None and largest >= num_classes):
        limit = "" if num_classes is None else f" to {num_classes - 1}"
        raise RequestError(
            f"class indices count from 0{limit}, but the labels run from {smallest} to {largest}"
        )
    if largest >= MAX_CLASSES:
        raise RequestError(
            f"class indices count from 0 to {MAX_CLASSES - 1:,} at most, and the largest is {largest:,}; number the classes anew"
        )
    return SingleLabel(largest + 1 if num_classes is None else num_classes), labels.astype(np.int64)


def as_tensor(targets: Targets) -> Tensor:
    """Targets as a tensor on the CPU."""
    return torch.from_numpy(np.ascontiguousarray(targets))
