"""Train the head of a run on train and score it once on test.

Shapes: N samples, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from featcache.probing.inputs.data import SplitData, base_transform, load_split
from featcache.probing.inputs.grouped import groups_of
from featcache.probing.inputs.memory import TRAIN
from featcache.probing.inputs.split import draw_shots
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.run_plan import ProbeContext, Run
from featcache.probing.scoring.intervals import score_intervals
from featcache.probing.scoring.kinds import SINGLE_LABEL
from featcache.probing.scoring.metrics import Report
from featcache.probing.scoring.soundness import is_sound
from featcache.probing.scoring.tasks import as_tensor, make_task
from featcache.probing.training.fitted import FittedHead
from featcache.probing.training.fitting import fit_job
from featcache.probing.training.prediction import predict_samples
from featcache.probing.training.strategy import FitSettings
from featcache.store.errors import DivergedError, RequestError
from featcache.store.inventory import SPLITS
from featcache.store.progress import Reporter


@dataclass(frozen=True)
class ScoredHead:
    """A fitted head and its outputs on test."""

    fitted: FittedHead
    outputs: torch.Tensor
    """``[N, O]``, averaged over views."""
    report: Report
    intervals: Mapping[str, tuple[float, float]]
    """Interval over test samples of every score that has one, by name."""
    num_train_samples: int
    """Samples that the head was trained on."""


def load_job(context: ProbeContext, job: HeadJob) -> dict[str, SplitData]:
    """Load the tokens of a job, split by split; errors as of `load_split`."""
    return {split: load_split_of(context, job, split) for split in SPLITS}


def load_split_of(context: ProbeContext, job: HeadJob, split: str) -> SplitData:
    """Load the tokens of a job of one split; errors as of `load_split`."""
    transform = base_transform(context.cache, job.selection, context.protocol)
    memory = context.budget.for_tokens(split)
    data = load_split(context.cache, split, job.selection, context.device, memory)
    sample_groups = context.groups if split == TRAIN else None
    groups = None if sample_groups is None else groups_of(data.sample_ids, sample_groups)
    return replace(data, tokens=data.tokens.with_transform(transform), groups=groups)


def draw_train_samples(context: ProbeContext, run: Run, train: SplitData, reporter: Reporter) -> SplitData:
    """Return the samples that a run trains on; a few-shot run sees no others, neither in training nor in the choice.

    Raises:
        RequestError: shots of targets that are not single labels.
    """
    shots = run.repetition.shots
    if shots is None:
        return train
    if context.target_kind != SINGLE_LABEL:
        raise RequestError(
            "shots are samples of every class, which only single-label targets have; leave --shots out"
        )
    counts = np.bincount(train.labels)
    short = int((counts[counts > 0] < shots).sum())
    if short:
        reporter.message(
            f"note: {run.title}: {short} of {int((counts > 0).sum())} classes have fewer samples; all of theirs are taken"
        )
    return train.subset(draw_shots(train.labels, shots, run.repetition.draw))


def train_and_score(
    context: ProbeContext, run: Run, train: SplitData, test: SplitData, reporter: Reporter
) -> ScoredHead:
    """Choose and fit the head of a run on train, and score it on test; arguments and errors as of `fit_run` and `score_head`."""
    fitted = fit_run(context, run, run.job, train, reporter, test.bytes)
    return score_head(run, fitted, test, len(train.labels))


def fit_run(
    context: ProbeContext, run: Run, job: HeadJob, train: SplitData, reporter: Reporter, other_bytes: int = 0
) -> FittedHead:
    """Choose and fit a head for a run on train.

    Args:
        context: cache and request.
        run: the run.
        job: the run's job, or the job of a candidate for it.
        train: the samples to train on.
        reporter: receives messages and progress.
        other_bytes: memory that other tokens take meanwhile.

    Raises:
        RequestError: train is too small.
        DivergedError: every fit diverged.
    """
    request = context.request
    settings = FitSettings(
        run.protocol,
        context.device,
        context.precision,
        memory=context.budget.for_members(train.bytes + other_bytes),
        out=request.out,
        force=request.force,
        reporter=reporter,
        target_kind=request.target_kind,
        regression_loss=request.regression_loss,
        memory_limit=request.memory,
    )
    return fit_job(job, train, settings, seed=run.repetition.seed, run=run.id, title=run.title)


def score_head(run: Run, fitted: FittedHead, test: SplitData, num_train_samples: int) -> ScoredHead:
    """Score the fitted head of a run on test.

    Raises:
        DivergedError: outputs on test are not finite.
    """
    outputs = predict_samples(fitted.head, test.tokens, fitted.task)
    if not is_sound(outputs, fitted.task.kind):
        raise DivergedError(f"{run.title}: the outputs of test samples are not finite")
    _, targets = make_task(test.labels, fitted.task.kind)
    report = fitted.task.scores(outputs, as_tensor(targets))
    intervals = score_intervals(outputs, as_tensor(targets), fitted.task, report)
    return ScoredHead(fitted, outputs, report, intervals, num_train_samples)
