"""The loss of multinomial logistic regression as a function of logits, for several penalties at once.

Shapes: N samples, P penalties, C classes. Logits are ``[N, P, C]``, so that those of all penalties come out of one
matrix product.
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
    """Its gradient in the logits, ``[N, P, C]``: the weight of the sample times probability minus target."""
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
        """How far the loss ``[P]``, float64, is above its tangent at `logits` after `step`, ``[N, P, C]`` both.

        The difference of two losses would be lost in rounding for small steps.
        """
        probabilities, _ = self._softmax(logits)
        centred = step - (probabilities * step).sum(2, keepdim=True)
        rise = torch.expm1(centred).sub_(centred).mul_(probabilities).sum(2)
        return self.weights @ rise.clamp_(min=0.0).log1p_().double()

    def evaluate(self, logits: Tensor) -> Evaluation:
        """Value, gradient and curvature at `logits` ``[N, P, C]``."""
        probabilities, losses = self._softmax(logits)
        weights = self.weights.to(logits.dtype)
        mean = torch.einsum("n,npc->pc", weights, probabilities)
        curvature = mean - torch.einsum("n,npc,npc->pc", weights, probabilities, probabilities)
        residual = probabilities.mul_(weights[:, None, None])
        index = self._index(logits)
        residual.scatter_add_(2, index, -weights[:, None, None].expand_as(index))
        return Evaluation(self.weights @ losses.double(), residual, curvature)

    def slope(self, logits: Tensor, direction: Tensor) -> Slope:
        """Value and derivatives at `logits` along `direction`, ``[N, P, C]`` both."""
        probabilities, losses = self._softmax(logits)
        at_target = direction.gather(2, self._index(logits)).squeeze(2)
        moved = probabilities.mul_(direction)
        mean = moved.sum(2)
        second = moved.mul_(direction).sum(2) - mean.square()
        return Slope(
            self.weights @ losses.double(),
            self.weights @ (mean - at_target).double(),
            self.weights @ second.double(),
        )

    def entropy(self, residual: Tensor) -> Tensor:
        """Weighted mean entropy ``[P]`` of the distributions that belong to a residual ``[N, P, C]`` (the dual value)."""
        distribution = residual / self.weights[:, None, None]
        index = self._index(residual)
        distribution.scatter_add_(2, index, torch.ones_like(index, dtype=residual.dtype))
        mean: Tensor = self.weights @ torch.special.entr(distribution.clamp_(min=0.0)).sum(2)
        return mean

    def _softmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities ``[N, P, C]``, fresh, and cross entropies ``[N, P]``."""
        shifted = logits - logits.amax(2, keepdim=True)
        at_target = shifted.gather(2, self._index(logits)).squeeze(2)
        probabilities = shifted.exp_()
        total = probabilities.sum(2, keepdim=True)
        return probabilities.div_(total), total.squeeze(2).log() - at_target

    def _index(self, logits: Tensor) -> Tensor:
        return self.targets[:, None, None].expand(-1, logits.shape[1], 1)
