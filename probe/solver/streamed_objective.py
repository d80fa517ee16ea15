"""Objective and gradient of logistic regression in one pass over features that are not in memory.

A pass makes two products a block, logits and gradient, and keeps neither logits nor residuals: for a million samples of a thousand classes
these would take gigabytes. Products are in the type that is asked for, and sums over blocks in float64.

Shapes: N samples, B rows of a block, F features, P penalties, C classes. Parameters are ``[P, C, F + 1]``; the last is the bias.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from featcache.probing.inputs.features import Features
from featcache.probing.solver.lbfgs import inner_product
from featcache.probing.solver.loss import WeightedLoss


@dataclass(frozen=True)
class StreamedEvaluation:
    """Objective, gradient and curvature at some parameters."""

    objective: Tensor
    """``[P]``, float64."""
    gradient: Tensor
    """``[P, C, F + 1]``, float64."""
    curvature: Tensor
    """Weighted mean of p (1 - p), ``[P, C]``, float64: the scale of the Hessian's blocks."""
    bias_hessian: Tensor | None = None
    """Second derivative in the bias, ``[P, C, C]``, float64, where it was asked for."""

    @property
    def norm(self) -> Tensor:
        """Frobenius norms ``[P]`` of the gradient."""
        return inner_product(self.gradient, self.gradient).sqrt()

    def of(self, indices: Tensor) -> "StreamedEvaluation":
        """Return the evaluation of some of the penalties."""
        return StreamedEvaluation(self.objective[indices], self.gradient[indices], self.curvature[indices])

    def copy(self) -> "StreamedEvaluation":
        """Return an evaluation to `put` others into."""
        return StreamedEvaluation(self.objective.clone(), self.gradient.clone(), self.curvature.clone())

    def put(self, indices: Tensor, other: "StreamedEvaluation") -> None:
        """Replace the evaluation of some of the penalties."""
        self.objective[indices] = other.objective
        self.gradient[indices] = other.gradient
        self.curvature[indices] = other.curvature


@dataclass(frozen=True)
class StreamedObjective:
    """The objective for samples whose features are read anew in every pass."""

    features: Features
    """``[N, F]``."""
    mean: Tensor
    """``[F]``, float64: taken off the features, so that weights and bias hardly interact. Any vector would do."""
    loss: WeightedLoss
    on_pass: Callable[[float], None] | None = None
    """Called with the seconds that each pass took."""

    def evaluate(
        self, params: Tensor, penalties: Tensor, dtype: torch.dtype, *, bias_hessian: bool = False
    ) -> StreamedEvaluation:
        """Return objective and gradient at `params`.

        Args:
            params: ``[P, C, F + 1]``.
            penalties: ``[P]``, float64.
            dtype: type of the products, float32 or float64.
            bias_hessian: whether to compute the second derivative in the bias.
        """
        started = time.perf_counter()
        sums = _Sums(params, dtype, bias_hessian)
        for rows, centered in self._centered(dtype):
            sums.add(centered, self.loss.targets[rows], self.loss.weights[rows])
        evaluation = sums.evaluation(params, penalties)
        if self.on_pass is not None:
            self.on_pass(time.perf_counter() - started)
        return evaluation

    def _centered(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        mean = self.mean.to(dtype)
        for rows, block in self.features.blocks():
            yield rows, block.to(dtype) - mean


class _Sums:
    """Sums over blocks."""

    def __init__(self, params: Tensor, dtype: torch.dtype, bias_hessian: bool) -> None:
        self._num_penalties, self._num_classes, width = params.shape
        flat = params.flatten(0, 1)
        self._weight = flat[:, :-1].to(dtype)  # [P * C, F]
        self._bias = flat[:, -1].to(dtype)
        zeros = partial(params.new_zeros, dtype=torch.float64)
        self._loss = zeros(self._num_penalties)
        self._gradient = zeros((len(flat), width))
        self._mean = zeros(len(flat))
        self._shares = zeros(self._num_classes)
        self._square = zeros(len(flat))
        shape = (self._num_penalties, self._num_classes, self._num_classes)
        self._outer = zeros(shape) if bias_hessian else None

    def add(self, centered: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add the samples of a block: features ``[B, F]``, targets and weights ``[B]``."""
        count = len(centered)
        logits = torch.addmm(self._bias, centered, self._weight.T)
        # Classes last: a softmax along contiguous values is one pass over them.
        log_probabilities = torch.log_softmax(logits.view(count, self._num_penalties, -1), dim=2)
        del logits
        index = targets.view(-1, 1, 1).expand(-1, self._num_penalties, 1)
        self._loss -= weights @ log_probabilities.gather(2, index).squeeze(2).double()
        probabilities = log_probabilities.exp_()
        own = weights.to(probabilities.dtype)
        flat = probabilities.view(count, -1)
        self._mean += own @ flat
        self._square += own @ flat.square()
        if self._outer is not None:
            weighted = (probabilities * own.view(-1, 1, 1)).permute(1, 2, 0)
            self._outer += weighted @ probabilities.permute(1, 0, 2)
        residual = probabilities.mul_(own.view(-1, 1, 1))
        residual.scatter_add_(2, index, -own.view(-1, 1, 1).expand(index.shape))
        self._gradient[:, :-1] += flat.T @ centered
        # Sums of probabilities are there already.
        self._shares.index_add_(0, targets, weights)

    def evaluation(self, params: Tensor, penalties: Tensor) -> StreamedEvaluation:
        """Return the sums with the penalty."""
        body = params[..., :-1].double()
        gradient = self._gradient.view(params.shape)
        gradient[..., :-1] += penalties[:, None, None] * body
        mean = self._mean.view(self._num_penalties, -1)
        gradient[..., -1] = mean - self._shares
        hessian = None if self._outer is None else torch.diag_embed(mean) - self._outer
        return StreamedEvaluation(
            self._loss + penalties * inner_product(body, body) / 2,
            gradient,
            mean - self._square.view(self._num_penalties, -1),
            hessian,
        )
