"""Scores on one split, for every kind of target, and the class weights of a classifier's loss.

Shapes: N samples, C classes, O outputs. Accuracies and the like are fractions between 0 and 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probing.scoring.confusion import DENSE_CLASSES, Confusion
from featcache.probing.scoring.kinds import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.probing.scoring.ranks import among_first
from featcache.probing.scoring.soundness import DIVERGED, is_sound

TOP = 5
SCORE_NAMES = {
    SINGLE_LABEL: ("balanced_accuracy", "top1", "top5", "macro_f1", "nll", "ece"),
    MULTI_LABEL: ("mean_average_precision", "macro_f1", "micro_f1", "nll"),
    REGRESSION: ("r2", "spearman", "mse", "mae"),
}
"""Scores in a report, by target type."""
ECE_BINS = 15
# Values of outputs in a float64 copy: the outputs of many samples and classes alone take gigabytes.
BLOCK_VALUES = 2**22
# Of probabilities, so that one sample that was thought impossible does not make a mean infinite.
FLOOR = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Scores:
    """The scores of arXiv 2601.09322 on one split."""

    balanced_accuracy: float
    top1: float
    top5: float | None
    """None if the split or the logits have fewer than 6 classes."""


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Score `logits` ``[N, C]`` against `labels` ``[N]`` (int64)."""
    enough_classes = min(len(torch.bincount(labels).nonzero()), logits.shape[1]) > TOP
    return Scores(
        balanced_accuracy=balanced_accuracy(logits, labels, logits.shape[1]),
        top1=top_k(logits, labels, 1),
        top5=top_k(logits, labels, TOP) if enough_classes else None,
    )


@dataclass(frozen=True)
class Report:
    """All scores on one split."""

    scores: Mapping[str, float | None]
    """By name; None where one is not defined, such as top-5 of fewer than 6 classes."""
    per_class: Sequence[Mapping[str, float | int | None]] = field(default=())
    """For every class: its number of samples, recall and precision or average precision; None where there are none."""
    pairs: Confusion | None = None
    """Confusion counts of single-label targets."""

    @property
    def confusion(self) -> Sequence[Sequence[int]] | None:
        """Counts ``[label][predicted]``; None for other targets, and for more than 256 classes, which have `pairs` instead."""
        if self.pairs is None or self.pairs.num_classes > DENSE_CLASSES:
            return None
        matrix: list[list[int]] = self.pairs.dense().tolist()
        return matrix

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        confusion = None if self.pairs is None else self.pairs.to_json()
        return {"scores": dict(self.scores), "per_class": list(self.per_class), "confusion": confusion}

    @classmethod
    def diverged(cls, target_type: str) -> "Report":
        """Return the report for outputs that are not finite: no score is defined."""
        return cls(dict.fromkeys(SCORE_NAMES[target_type]))


def single_label_report(logits: Tensor, labels: Tensor) -> Report:
    """Score `logits` ``[N, C]`` against `labels` ``[N]`` (int64); labels beyond C were unknown in training.

    ``macro_f1`` is the mean over the classes that occur in labels or predictions; ``nll`` the mean negative log-likelihood, with
    probabilities not below the least of float32; ``ece`` the expected calibration error with 15 bins of equal width
    (Guo et al. 2017, arXiv 1706.04599). Logits that are not numbers have no scores.
    """
    logits, labels = logits.cpu(), labels.cpu()
    if not is_sound(logits, SINGLE_LABEL):
        return Report.diverged(SINGLE_LABEL)
    found = scores(logits, labels)
    num_classes = max(logits.shape[1], int(labels.max()) + 1)
    predicted = logits.argmax(1)
    hits, actual, guessed = (
        torch.bincount(classes, minlength=num_classes)
        for classes in (labels[predicted == labels], labels, predicted)
    )
    occurs = (actual + guessed) > 0
    f1 = 2 * hits[occurs].double() / (actual + guessed)[occurs]
    values: dict[str, float | None] = {
        "balanced_accuracy": found.balanced_accuracy,
        "top1": found.top1,
        "top5": found.top5,
        "macro_f1": float(f1.mean()),
        "nll": negative_log_likelihood(logits, labels),
        "ece": calibration_error(logits, labels),
    }
    per_class = [
        {
            "samples": samples,
            "recall": right / samples if samples else None,
            "precision": right / number if number else None,
        }
        for right, samples, number in zip(hits.tolist(), actual.tolist(), guessed.tolist(), strict=True)
    ]
    return Report(values, per_class, Confusion.of(labels.numpy(), predicted.numpy(), num_classes))


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label), p not below the least of float32; logits ``[N, C]``, labels ``[N]``."""
    return float(-log_likelihoods(logits, labels).mean())


def log_likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(label) of every sample, ``[N]``, float64; see `negative_log_likelihood`."""
    of_label = torch.zeros(len(labels), dtype=torch.float64)
    for rows in row_blocks(logits):
        probabilities, label = logits[rows].double().softmax(1), labels[rows]
        known = label < logits.shape[1]
        of_label[rows][known] = probabilities[known, label[known]]
    return of_label.clamp(min=FLOOR).log()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error: how far the largest probability is from the accuracy, bin by bin of equal width."""
    # Use the logits, since probabilities near 1 or 0 tie where logits do not.
    predicted = logits.argmax(1)
    parts = [
        logits[rows].double().softmax(1).gather(1, predicted[rows, None]).squeeze(1)
        for rows in row_blocks(logits)
    ]
    confidence = torch.cat(parts)
    right = (predicted == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, confidence - right)
    return float(gaps.abs().sum() / len(labels))


def row_blocks(outputs: Tensor) -> list[slice]:
    """Split the rows of `outputs` ``[N, C]`` into one or more blocks, so that a float64 copy of a block takes 32 MB."""
    size = max(1, BLOCK_VALUES // max(1, outputs.shape[1]))
    return [slice(start, start + size) for start in range(0, max(1, len(outputs)), size)]


def multi_label_report(logits: Tensor, targets: Tensor) -> Report:
    """Score `logits` ``[N, C]`` against `targets` ``[N, C]`` of 0 and 1; a class is predicted where its logit is positive.

    Means over classes are over those with at least one positive sample. Logits that are not finite have no scores.
    """
    if not is_sound(logits, MULTI_LABEL):
        return Report.diverged(MULTI_LABEL)
    precisions = average_precisions(logits, targets)
    predicted, actual = logits.cpu().numpy() > 0, targets.cpu().numpy() > 0
    hits, marked = (predicted & actual).sum(0), predicted.sum(0) + actual.sum(0)
    present = actual.any(0)
    f1 = 2 * hits[present] / marked[present]
    micro = 2 * hits.sum() / marked.sum() if marked.any() else 0.0
    values: dict[str, float | None] = {
        "mean_average_precision": _mean(precisions),
        "macro_f1": float(f1.mean()) if present.any() else None,
        "micro_f1": float(micro),
        "nll": multi_label_negative_log_likelihood(logits, targets),
    }
    per_class = [
        {"samples": int(count), "average_precision": precision}
        for count, precision in zip(actual.sum(0), precisions, strict=True)
    ]
    return Report(values, per_class)


def multi_label_negative_log_likelihood(logits: Tensor, targets: Tensor) -> float:
    """Mean of -log p over samples and classes, each class by itself; logits and targets ``[N, C]``."""
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.cpu().double(), targets.cpu().double()
    )
    return float(losses)


def average_precisions(logits: Tensor, targets: Tensor) -> list[float | None]:
    """Average precision of every class (scikit-learn's: no interpolation); None for one without positive samples."""
    from sklearn.metrics import average_precision_score

    scored, actual = logits.cpu().double().numpy(), targets.cpu().numpy() > 0
    return [
        float(average_precision_score(actual[:, index], scored[:, index])) if actual[:, index].any() else None
        for index in range(actual.shape[1])
    ]


def mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """Mean average precision over the classes with a positive sample; 0 if there is none.

    `DIVERGED` for logits that are not finite.
    """
    if not is_sound(logits, MULTI_LABEL):
        return DIVERGED
    return _mean(average_precisions(logits, targets)) or 0.0


def regression_report(outputs: Tensor, targets: Tensor) -> Report:
    """Score `outputs` ``[N, O]`` against `targets` ``[N, O]``: each score is the mean over outputs.

    A single sample has no R2, and outputs that are not finite have no scores.
    """
    if not is_sound(outputs, REGRESSION):
        return Report.diverged(REGRESSION)
    guessed, actual = outputs.cpu().double().numpy(), targets.cpu().double().numpy()
    error = guessed - actual
    correlations = [_spearman(guessed[:, index], actual[:, index]) for index in range(actual.shape[1])]
    return Report(
        {
            "r2": r2(outputs, targets) if len(targets) > 1 else None,
            "spearman": _mean(correlations),
            "mse": float(np.square(error).mean()),
            "mae": float(np.abs(error).mean()),
        }
    )


def r2(outputs: Tensor, targets: Tensor) -> float:
    """Coefficient of determination, the mean over outputs; `DIVERGED` for outputs that are not finite.

    A single sample has no R2, so the negative squared error is returned, which ranks outputs in the same order.
    """
    from sklearn.metrics import r2_score

    if not is_sound(outputs, REGRESSION):
        return DIVERGED
    if len(targets) < 2:
        return -float((outputs.double() - targets.double()).square().mean())
    return float(r2_score(targets.cpu().double().numpy(), outputs.cpu().double().numpy()))


def _spearman(guessed: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> float | None:
    """Rank correlation; None where one side is constant."""
    from scipy.stats import rankdata

    if np.ptp(guessed) == 0 or np.ptp(actual) == 0:
        return None
    return float(np.corrcoef(rankdata(guessed), rankdata(actual))[0, 1])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def balanced_accuracy(logits_or_pred: Tensor, labels: Tensor, num_classes: int) -> float:
    """Mean recall over the classes that are present in `labels`.

    Args:
        logits_or_pred: logits ``[N, C]``, or predicted classes ``[N]`` (int64).
        labels: ``[N]``, int64. A class beyond `num_classes` was unknown in training: its recall is 0.
        num_classes: C.
    """
    pred = logits_or_pred.argmax(dim=1) if logits_or_pred.ndim == 2 else logits_or_pred
    counts = torch.bincount(labels, minlength=num_classes)
    hits = torch.bincount(labels[pred == labels], minlength=len(counts))
    present = counts > 0
    # On the CPU: Apple's GPUs have no float64.
    return float((hits[present].cpu().double() / counts[present].cpu()).mean())


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Fraction of samples whose label is among the `k` first classes of their logits ``[N, C]``; ties as in `among_first`."""
    return float(among_first(logits, labels, k).cpu().double().mean())


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weight of each class in the loss, ``N / (C * count_c)``, 0 for an empty class.

    Args:
        labels: ``[N]``, int64: those of the part that is trained on.
        num_classes: C.

    Returns:
        ``[C]``, float32.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = len(labels) / (num_classes * counts.clamp(min=1))
    return weights.where(counts > 0, 0.0).float()
