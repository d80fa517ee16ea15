"""The ways to fit a head have one form: a strategy takes a task and the settings of the probe, and returns a fitted head."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol as Interface

import torch

from featcache.probing.protocols.protocol import Protocol
from featcache.probing.scoring.kinds import REGRESSION_LOSSES
from featcache.probing.training.auto import Candidate
from featcache.probing.training.fitted import FitTask, FittedHead
from featcache.store.progress import Reporter, Silent


@dataclass(frozen=True)
class FitSettings:
    """Everything that the fits of a probe share."""

    protocol: Protocol
    device: torch.device
    precision: str
    memory: int
    """Bytes for the members that train together."""
    out: Path | None = None
    """Folder of the results, where unfinished sweeps are kept; None keeps none."""
    force: bool = False
    """Whether unfinished sweeps start anew."""
    reporter: Reporter = field(default_factory=Silent)
    target_kind: str | None = None
    """Target type; by default that of the targets' dtype and shape."""
    regression_loss: str = REGRESSION_LOSSES[0]
    memory_limit: int | None = None
    """Bytes that the user allows for the run; None for all free memory."""


class FitStrategy(Interface):
    """One way to choose and fit a head."""

    def fit(self, fit_task: FitTask, settings: FitSettings) -> FittedHead:
        """Choose the settings of a head on held-out samples of train, then fit it on all of train.

        Raises:
            RequestError: the train split is too small, or too large for the method.
            DivergedError: every fit diverged.
        """


class CandidateStrategy(FitStrategy, Interface):
    """A way to fit a head that ``auto`` can compare with others before the head is fitted on all of train."""

    def candidate(self, fit_task: FitTask, settings: FitSettings) -> Candidate:
        """Choose the settings of a head, and return its outputs on the held-out samples; errors as of `fit`."""
