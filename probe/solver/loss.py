"""The loss of multinomial logistic regression as a function of logits, for several penalties at once.

Shapes: N samples, P penalties, C classes. Logits are ``[P, C, N]``: those of all penalties come out of one matrix product,
and sums over few classes run along many samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """The loss at some logits, without the penalty."""

    loss: Tensor
    """``[P]``, float64."""
    residual: Tensor
    """Its gradient in the logits, ``[P, C, N]``: the weight of the sample times probability minus target."""
    curvature: Tensor
    """Weighted mean of p (1 - p), ``[P, C]``: the scale of the Hessian's blocks."""


@dataclass(frozen=True)
class Slope:
    """The loss along a line, ``[P]`` each, float64: value, first and second derivative."""

    value: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class WeightedLoss:
    """Weighted mean of the cross entropy."""

    targets: Tensor
    """``[N]``, int64, every class between 0 and C - 1 occurs."""
    weights: Tensor
    """``[N]``, float64, positive, their sum is 1."""

    def bregman(self, logits: Tensor, step: Tensor) -> Tensor:
        """How far the loss ``[P]``, float64, is above its tangent at `logits` after `step`, ``[P, C, N]`` both.

        The difference of two losses would be lost in rounding for small steps.
        """
        probabilities, _ = self._softmax(logits)
        centred = step - (probabilities * step).sum(1, keepdim=True)
        rise = torch.expm1(centred).sub_(centred).mul_(probabilities).sum(1)
        return self._mean(rise.clamp_(min=0.0).log1p_())

    def evaluate(self, logits: Tensor) -> Evaluation:
        """Value, gradient and curvature at `logits` ``[P, C, N]``."""
        probabilities, losses = self._softmax(logits)
        weights = self.weights.to(logits.dtype)
        curvature = probabilities @ weights - probabilities.square() @ weights
        residual = probabilities.mul_(weights)
        index = self._index(logits)
        residual.scatter_add_(1, index, -weights.expand(index.shape))
        return Evaluation(self._mean(losses), residual, curvature)

    def slope(self, logits: Tensor, direction: Tensor) -> Slope:
        """Value and derivatives at `logits` along `direction`, ``[P, C, N]`` both."""
        probabilities, losses = self._softmax(logits)
        at_target = direction.gather(1, self._index(logits)).squeeze(1)
        moved = probabilities.mul_(direction)
        mean = moved.sum(1)
        second = moved.mul_(direction).sum(1) - mean.square()
        return Slope(self._mean(losses), self._mean(mean - at_target), self._mean(second))

    def entropy(self, residual: Tensor) -> Tensor:
        """Weighted mean entropy ``[P]`` of the distributions that belong to a residual ``[P, C, N]`` (the dual value)."""
        distribution = residual / self.weights
        index = self._index(residual)
        distribution.scatter_add_(1, index, distribution.new_ones(index.shape))
        return self._mean(torch.special.entr(distribution.clamp_(min=0.0)).sum(1))

    def _mean(self, per_sample: Tensor) -> Tensor:
        """Weighted means ``[P]``, float64, of ``[P, N]``."""
        mean: Tensor = per_sample.double() @ self.weights
        return mean

    def _softmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities ``[P, C, N]``, fresh, and cross entropies ``[P, N]``."""
        shifted = logits - logits.amax(1, keepdim=True)
        at_target = shifted.gather(1, self._index(logits)).squeeze(1)
        probabilities = shifted.exp_()
        total = probabilities.sum(1, keepdim=True)
        return probabilities.div_(total), total.squeeze(1).log() - at_target

    def _index(self, logits: Tensor) -> Tensor:
        """The targets as an index into the classes, ``[P, 1, N]``."""
        return self.targets.expand(len(logits), 1, -1)
