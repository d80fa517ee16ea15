"""What members are trained to make small: one loss for each kind of target.

Shapes: M members, B batch, C classes, O outputs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Loss(Protocol):
    """The mean loss of every member over a mini-batch."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Map outputs ``[M, B, O]`` and targets (``[B]`` or ``[B, O]``) to losses ``[M]``."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy weighted by class; the mean divides by the sum of the weights in the batch."""

    weights: Tensor
    """``[C]``, float32."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Targets are class indices ``[B]``."""
        weights = self.weights.to(outputs.dtype) if outputs.dtype is torch.float64 else self.weights
        outputs = outputs.to(weights.dtype)
        repeated = targets.expand(len(outputs), -1).flatten()
        losses = F.cross_entropy(outputs.flatten(0, 1), repeated, weights, reduction="none")
        return losses.view(len(outputs), -1).sum(1) / weights[targets].sum()


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples and classes of the cross-entropy of each class by itself; targets ``[B, C]`` are 0 or 1."""
    outputs = _at_least_float32(outputs)
    losses = F.binary_cross_entropy_with_logits(
        outputs, targets.to(outputs.dtype).expand_as(outputs), reduction="none"
    )
    return losses.mean((1, 2))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples and outputs; targets ``[B, O]``."""
    outputs = _at_least_float32(outputs)
    return (outputs - targets.to(outputs.dtype)).square().mean((1, 2))


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples and outputs; targets ``[B, O]``."""
    outputs = _at_least_float32(outputs)
    return (outputs - targets.to(outputs.dtype)).abs().mean((1, 2))


def _at_least_float32(outputs: Tensor) -> Tensor:
    return outputs if outputs.dtype is torch.float64 else outputs.float()
