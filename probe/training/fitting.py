"""Fit one head on train: the solver of its job decides the strategy, and samples that leave no validation set end the choice."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from featcache.probing.inputs.data import SplitData
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.requests.request import ADAMW, CHOICE, CLOSED_FORM, EXACT
from featcache.probing.scoring.kinds import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.probing.scoring.tasks import LEAST_REGRESSION, make_task
from featcache.probing.training.auto_strategy import AutoStrategy
from featcache.probing.training.closed_form_strategy import ClosedFormStrategy
from featcache.probing.training.exact_strategy import ExactStrategy
from featcache.probing.training.fitted import FitTask, FittedHead
from featcache.probing.training.strategy import CandidateStrategy, FitSettings, FitStrategy
from featcache.probing.training.sweep_strategy import SweepStrategy
from featcache.store.errors import DivergedError

_OF_ONE_HEAD: Mapping[str, CandidateStrategy] = {
    ADAMW: SweepStrategy(),
    EXACT: ExactStrategy(),
    CLOSED_FORM: ClosedFormStrategy(),
}
STRATEGIES: Mapping[str, FitStrategy] = {**_OF_ONE_HEAD, CHOICE: AutoStrategy(_OF_ONE_HEAD)}
"""How a job is fitted, by its solver."""


def fit_job(
    job: HeadJob, train: SplitData, settings: FitSettings, *, seed: int, run: str, title: str
) -> FittedHead:
    """Choose and fit a head.

    Args:
        job: head and tokens.
        train: the train split.
        settings: protocol, device, memory and folders.
        seed: fixes everything that is drawn.
        run: id of the run, under which unfinished work is kept.
        title: name of the run in messages.

    Raises:
        RequestError: the train split is too small, or its targets are not for this head.
        DivergedError: every fit diverged.
    """
    task, targets = make_task(train.row_labels, settings.target_kind, loss=settings.regression_loss)
    fit_task = FitTask(job, seed, run, title, train, task, targets)
    if job.solver != CHOICE:
        job.head.check_kind(task.kind)
    shortage = _shortage(fit_task, settings)
    if shortage:
        settings.reporter.message(
            f"note: {title}: {shortage} to choose with; the settings are the middle ones of the sweep"
        )
        settings = replace(settings, protocol=settings.protocol.without_choice())
    try:
        return STRATEGIES[job.solver].fit(fit_task, settings)
    except DivergedError as error:
        raise DivergedError(f"{title}: {error}") from error


def _shortage(fit_task: FitTask, settings: FitSettings) -> str | None:
    """Return why no validation set can be held out; None where one can."""
    kind, targets = fit_task.task.kind, fit_task.targets[: fit_task.train.num_samples]
    if kind == SINGLE_LABEL and len(targets) and int(np.bincount(targets).max()) < 2:
        return "one sample of each class leaves none"
    if kind == REGRESSION and len(targets) < LEAST_REGRESSION:
        return f"{len(targets)} samples leave none"
    if kind == MULTI_LABEL and _is_indivisible(fit_task, settings):
        return "too few samples of each label leave none"
    return None


def _is_indivisible(fit_task: FitTask, settings: FitSettings) -> bool:
    """Return whether no sample can be held out; folds and groups have their own errors."""
    protocol, targets = settings.protocol, fit_task.targets[: fit_task.train.num_samples]
    if len(targets) < 2 or protocol.num_folds(len(targets)) != 1 or fit_task.train.groups is not None:
        return False
    return not len(fit_task.task.holdout(targets, protocol.validation_fraction, fit_task.seed)[1])
