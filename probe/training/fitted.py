"""A fit: the task of fitting one head, and the fitted head with how it was chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from featcache.probing.heads.base import Head
from featcache.probing.inputs.data import SplitData
from featcache.probing.inputs.selection import Selection
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.results.records import SweepRecord, SweepTrial
from featcache.probing.results.rows import Chosen
from featcache.probing.scoring.tasks import Task


@dataclass(frozen=True)
class FittedHead:
    """A head, fitted on all of train, and how it was chosen."""

    head: Head
    task: Task
    parameters: int
    validation: float
    """The task's score of the chosen settings on held-out samples."""
    chosen: Chosen
    seconds: float
    name: str
    """Name of the head: that of the request, unless ``auto`` chose another."""
    input: str
    """Input transform; of an average, those of its parts."""
    sweep: SweepRecord | None = None
    """Settings that validation compared, with their scores; None for a head that ``auto`` chose."""
    candidates: tuple[Mapping[str, Any], ...] = ()
    """Head, input transform and score of every candidate of ``auto``."""
    selection: Selection | None = None
    """Tokens that the head takes, where these are fewer than those of its job; None where they are the same."""

    @property
    def num_classes(self) -> int:
        """C, or outputs of a regression."""
        return self.task.num_outputs


@dataclass(frozen=True)
class FitTask:
    """The task of fitting one head on train with one seed."""

    job: HeadJob
    seed: int
    """Fixes everything that is drawn."""
    run: str
    """Id of the run, under which unfinished work is kept."""
    title: str
    """Name of the run in messages."""
    train: SplitData
    task: Task
    targets: npt.NDArray[Any]
    """Targets of train in the form of the task: class indices ``[N]``, int64, or ``[N, O]``."""


def record_sweep(
    task: Task, trials: Sequence[tuple[Mapping[str, float], float]], chosen: Mapping[str, float]
) -> SweepRecord:
    """Return the settings that a sweep compared, as they are kept beside the head."""
    listed = [SweepTrial(dict(settings), score) for settings, score in trials]
    return SweepRecord(task.metric, listed, [trial.settings for trial in listed].index(dict(chosen)))


def count_parameters(head: Head) -> int:
    """Return the number of parameters of a head of one member."""
    return sum(parameter.numel() for parameter in head.parameters())
