"""Scores of a classifier, and the class weights of its loss.

Shapes: N samples, C classes. Scores are fractions between 0 and 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """The scores of arXiv 2601.09322 on one split."""

    balanced_accuracy: float
    top1: float
    top5: float | None
    """None where the split has fewer than 6 classes."""


def scores(logits: Tensor, labels: Tensor) -> Scores:
    """Score `logits` ``[N, C]`` against `labels` ``[N]`` (int64)."""
    enough_classes = len(torch.bincount(labels).nonzero()) >= 6
    return Scores(
        balanced_accuracy=balanced_accuracy(logits, labels, logits.shape[1]),
        top1=top_k(logits, labels, 1),
        top5=top_k(logits, labels, 5) if enough_classes else None,
    )


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
    """Fraction of samples whose label is among the `k` largest of their logits ``[N, C]``."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return float((best == labels[:, None]).any(dim=1).cpu().double().mean())


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
