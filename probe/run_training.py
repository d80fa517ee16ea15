"""Train the head of a run on train and score it once on test.

Shapes: N samples, O outputs.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from featcache.probing.inputs.data import SplitData, base_transform, load_split
from featcache.probing.inputs.grouped import groups_of
from featcache.probing.inputs.memory import TRAIN
from featcache.probing.inputs.split import draw_shots
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.run_plan import ProbeContext, Run
from featcache.probing.scoring.bootstrap import score_interval
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
    interval: tuple[float, float] | None
    """Bootstrap interval of the score."""
    num_train_samples: int
    """Samples that the head was trained on."""


def load_job(context: ProbeContext, job: HeadJob) -> dict[str, SplitData]:
    """Load the tokens of a job, split by split; errors as of `load_split`."""
    transform = base_transform(context.cache, job.selection, context.protocol)
    splits = {}
    for split in SPLITS:
        memory = context.budget.for_tokens(split)
        data = load_split(context.cache, split, job.selection, context.device, memory)
        sample_groups = context.groups if split == TRAIN else None
        groups = None if sample_groups is None else groups_of(data.sample_ids, sample_groups)
        splits[split] = replace(data, tokens=data.tokens.with_transform(transform), groups=groups)
    return splits


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
    """Choose and fit the head of a run on train, and score it on test.

    Raises:
        RequestError: train is too small.
        DivergedError: every fit diverged, or outputs on test are not finite.
    """
    request = context.request
    settings = FitSettings(
        run.protocol,
        context.device,
        context.precision,
        memory=context.budget.for_members(train.bytes + test.bytes),
        out=request.out,
        force=request.force,
        reporter=reporter,
        target_kind=request.target_kind,
        regression_loss=request.regression_loss,
        memory_limit=request.memory,
    )
    fitted = fit_job(run.job, train, settings, seed=run.repetition.seed, run=run.id, title=run.title)
    outputs = predict_samples(fitted.head, test.tokens, fitted.task)
    if not is_sound(outputs, fitted.task.kind):
        raise DivergedError(f"{run.title}: the outputs of test samples are not finite")
    _, targets = make_task(test.labels, fitted.task.kind)
    report = fitted.task.scores(outputs, as_tensor(targets))
    interval = score_interval(outputs, as_tensor(targets), fitted.task)
    return ScoredHead(fitted, outputs, report, interval, len(train.labels))
