"""Held-out outputs of the settings of a closed-form head: all outputs, or only the values for a choice if all are too many.

Shapes: M settings, R held-out samples, B batch, O outputs.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from featcache.probing.scoring.metrics import (
    balanced_accuracy,
    log_likelihoods,
    multi_label_negative_log_likelihood,
    negative_log_likelihood,
)
from featcache.probing.scoring.soundness import DIVERGED, is_sound
from featcache.probing.scoring.tasks import MultiLabel, SingleLabel, Task

# Share of the memory for outputs; the rest is for features and their copies.
OUTPUT_SHARE = 4

Rank = tuple[float, float]
"""Score and likelihood: the second decides between settings that share the first."""


class HeldOut(ABC):
    """Collects the outputs of M settings, batch by batch in the order of the held-out samples."""

    @abstractmethod
    def add(self, outputs: Tensor) -> None:
        """Add the outputs ``[M, B, O]`` of the next samples, on the CPU."""

    @abstractmethod
    def ranks(self) -> list[Rank]:
        """Return the rank of every setting; more is better."""

    @abstractmethod
    def outputs(self, index: int) -> Tensor | None:
        """Return the outputs ``[R, O]`` of one setting; None where they were not kept."""


def make_held_out(task: Task, num_settings: int, targets: Tensor, memory: int) -> HeldOut:
    """Choose how much of the held-out outputs to keep.

    Args:
        task: the type of the targets; scores of types other than single labels need all outputs.
        num_settings: number of settings M.
        targets: targets of the R held-out samples.
        memory: bytes for everything; a quarter may go to outputs.
    """
    size = 4 * num_settings * len(targets) * task.num_outputs
    if isinstance(task, SingleLabel) and size > memory // OUTPUT_SHARE:
        return _Evidence(task, num_settings, targets)
    return _AllOutputs(task, num_settings, targets)


class _AllOutputs(HeldOut):
    def __init__(self, task: Task, num_settings: int, targets: Tensor) -> None:
        self._task, self._targets, self._filled = task, targets, 0
        self._outputs = torch.empty(num_settings, len(targets), task.num_outputs)

    def add(self, outputs: Tensor) -> None:
        stop = self._filled + outputs.shape[1]
        self._outputs[:, self._filled : stop] = outputs
        self._filled = stop

    def ranks(self) -> list[Rank]:
        task, targets = self._task, self._targets
        return [
            (task.score(outputs, targets), likelihood(outputs, targets, task)) for outputs in self._outputs
        ]

    def outputs(self, index: int) -> Tensor | None:
        return self._outputs[index].clone()  # a view would keep those of all settings


class _Evidence(HeldOut):
    """Keeps the predicted class and the log-likelihood of the label for every sample and setting."""

    def __init__(self, task: SingleLabel, num_settings: int, targets: Tensor) -> None:
        self._task, self._targets, self._filled = task, targets, 0
        self._predicted = torch.empty(num_settings, len(targets), dtype=torch.int32)
        self._diverged: set[int] = set()
        self._log_likelihoods = torch.empty(num_settings, len(targets), dtype=torch.float64)

    def add(self, outputs: Tensor) -> None:
        rows = slice(self._filled, self._filled + outputs.shape[1])
        for index, own in enumerate(outputs):
            if not is_sound(own, self._task.kind):
                self._diverged.add(index)
            self._predicted[index, rows] = own.argmax(1).int()
            self._log_likelihoods[index, rows] = log_likelihoods(own, self._targets[rows])
        self._filled = rows.stop

    def ranks(self) -> list[Rank]:
        return [
            (DIVERGED, DIVERGED) if index in self._diverged else (self._score(predicted), float(known.mean()))
            for index, (predicted, known) in enumerate(
                zip(self._predicted, self._log_likelihoods, strict=True)
            )
        ]

    def _score(self, predicted: Tensor) -> float:
        return balanced_accuracy(predicted.long(), self._targets, self._task.num_outputs)

    def outputs(self, index: int) -> Tensor | None:
        return None


def likelihood(outputs: Tensor, targets: Tensor, task: Task) -> float:
    """Return the log-likelihood that decides a tie: of the labels, or of every class for label sets."""
    if not is_sound(outputs, task.kind):
        return DIVERGED
    if isinstance(task, SingleLabel):
        return -negative_log_likelihood(outputs, targets)
    return -multi_label_negative_log_likelihood(outputs, targets) if isinstance(task, MultiLabel) else 0.0
