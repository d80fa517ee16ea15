"""Intervals of scores over test samples: how far another test set of this size may give other scores.

| score | interval |
|---|---|
| balanced accuracy | stratified Wilson |
| top-1, top-5 | Wilson |
| macro F1, micro F1, mean average precision, R2, Spearman | bootstrap, percentiles |
| negative log-likelihood, squared and absolute error | Student's t of the mean over samples |
| calibration error | none: resampled samples have a larger calibration error than the samples themselves |

What another seed of the training gives, none of them tells.

Shapes: N samples, C classes, O outputs.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probing.scoring import bootstrap
from featcache.probing.scoring.kinds import MULTI_LABEL, SINGLE_LABEL
from featcache.probing.scoring.metrics import Report, log_likelihoods
from featcache.probing.scoring.soundness import is_sound
from featcache.probing.scoring.tasks import Task
from featcache.probing.scoring.wilson import LEVEL, balanced_accuracy_interval, wilson_interval

Interval = tuple[float, float]
Bools = npt.NDArray[np.bool_]


def score_intervals(
    outputs: Tensor, targets: Tensor, task: Task, report: Report, level: float = LEVEL
) -> dict[str, Interval]:
    """Return the interval of every score that has one, by name.

    Args:
        outputs: ``[N, O]``.
        targets: as the task has them.
        task: what is scored.
        report: the scores.
        level: of the intervals.

    Returns:
        Low and high by name of the score; empty for outputs that are not finite. A score without an interval is left out: one that
        is not defined, of a single sample, or that no resampled samples change.
    """
    if not is_sound(outputs, task.kind) or not len(targets):
        return {}
    if task.kind == SINGLE_LABEL:
        found = _of_single_labels(outputs, targets, report.scores, level)
    elif task.kind == MULTI_LABEL:
        found = _of_label_sets(outputs.cpu().double().numpy(), targets.cpu().numpy() > 0, level)
    else:
        found = _of_numbers(outputs.cpu().double().numpy(), targets.cpu().double().numpy(), level)
    known = {name for name, score in report.scores.items() if score is not None}
    return {name: pair for name, pair in found.items() if pair is not None and name in known}


def _of_single_labels(
    outputs: Tensor, labels: Tensor, scores: Mapping[str, float | None], level: float
) -> dict[str, Interval | None]:
    outputs, labels = outputs.cpu(), labels.cpu()
    predicted = outputs.argmax(1)
    num_classes = max(outputs.shape[1], int(labels.max()) + 1)
    counts = torch.bincount(labels, minlength=num_classes).numpy()
    right = torch.bincount(labels[predicted == labels], minlength=num_classes).numpy()
    shares = {name: scores[name] for name in ("top1", "top5")}
    # Only classes that occur count: there may be far more.
    names, indices = np.unique(np.concatenate([labels.numpy(), predicted.numpy()]), return_inverse=True)
    eye = (
        np.eye(len(names), dtype=bool) if len(names) * len(labels) <= bootstrap.MOST_VALUES // 1000 else None
    )
    actual, guessed = np.split(indices, 2)
    return {
        "balanced_accuracy": balanced_accuracy_interval(right, counts, level),
        **{
            name: None if share is None else wilson_interval(share, len(labels), level)
            for name, share in shares.items()
        },
        "macro_f1": None if eye is None else _macro_f1(eye[guessed], eye[actual], level, present_only=False),
        "nll": _of_mean(-log_likelihoods(outputs, labels).numpy(), level),
    }


def _of_label_sets(
    outputs: npt.NDArray[np.float64], actual: Bools, level: float
) -> dict[str, Interval | None]:
    losses = np.logaddexp(0, np.where(actual, -outputs, outputs)).mean(1)
    num_samples, num_classes = actual.shape
    return {
        "mean_average_precision": bootstrap.percentile_interval(
            bootstrap.mean_average_precisions(outputs, actual), num_samples, num_classes, level
        ),
        "macro_f1": _macro_f1(outputs > 0, actual, level, present_only=True),
        "micro_f1": bootstrap.percentile_interval(
            bootstrap.micro_f1_scores(outputs > 0, actual), num_samples, 1, level
        ),
        "nll": _of_mean(losses, level),
    }


def _of_numbers(
    outputs: npt.NDArray[np.float64], actual: npt.NDArray[np.float64], level: float
) -> dict[str, Interval | None]:
    num_samples, num_outputs = actual.shape
    return {
        "r2": bootstrap.percentile_interval(
            bootstrap.r2_scores(outputs, actual), num_samples, num_outputs, level
        ),
        "spearman": bootstrap.percentile_interval(
            bootstrap.rank_correlations(outputs, actual), num_samples, 4 * num_outputs, level
        ),
        "mse": _of_mean(np.square(outputs - actual).mean(1), level),
        "mae": _of_mean(np.abs(outputs - actual).mean(1), level),
    }


def _macro_f1(predicted: Bools, actual: Bools, level: float, *, present_only: bool) -> Interval | None:
    score = bootstrap.macro_f1_scores(predicted, actual, present_only=present_only)
    return bootstrap.percentile_interval(score, actual.shape[0], actual.shape[1], level)


def _of_mean(values: npt.NDArray[np.float64], level: float) -> Interval | None:
    """Return the interval of a mean by Student's t; None for fewer than two values, or equal ones."""
    if len(values) < 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None
    from scipy.special import stdtrit

    mean = float(values.mean())
    reach = float(stdtrit(len(values) - 1, (1 + level) / 2)) * float(values.std(ddof=1)) / len(values) ** 0.5
    # The mean of values that are at least 0 is at least 0.
    return max(0.0, mean - reach) if values.min() >= 0 else mean - reach, mean + reach
