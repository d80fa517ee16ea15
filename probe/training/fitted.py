"""What fitting a head takes and gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from featcache.probing.heads.base import Head
from featcache.probing.inputs.data import SplitData
from featcache.probing.requests.request import HeadJob
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
    """Of the head: that of the request, unless that was ``auto``."""
    input: str
    """Input stage; of an average, those of its parts."""
    sweep: SweepRecord | None = None
    """All that validation compared, unless the head was chosen by ``auto``."""
    candidates: tuple[Mapping[str, Any], ...] = ()
    """Head, input stage and score of all that ``auto`` compared."""

    @property
    def num_classes(self) -> int:
        """C, or outputs of a regression."""
        return self.task.num_outputs


@dataclass(frozen=True)
class FitTask:
    """One fit: a head, a seed, and the train split."""

    job: HeadJob
    seed: int
    run: str
    title: str
    train: SplitData
    task: Task
    targets: npt.NDArray[Any]


def record_sweep(
    task: Task, trials: Sequence[tuple[Mapping[str, float], float]], chosen: Mapping[str, float]
) -> SweepRecord:
    """What a sweep compared, as it is kept beside the head."""
    listed = [SweepTrial(dict(settings), score) for settings, score in trials]
    return SweepRecord(task.metric, listed, [trial.settings for trial in listed].index(dict(chosen)))


def count_parameters(head: Head) -> int:
    """Parameters of a head of one member."""
    return sum(parameter.numel() for parameter in head.parameters())
