"""Accelerated proximal gradient for the group lasso, in a diagonal metric that follows the features.

Shapes: N samples, R dimensions, G groups, C classes. Parameters are ``[C, R + 1]``; the last is the bias.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.probing.solver.design import Design
from featcache.probing.solver.loss import WeightedLoss

MAX_NEWTON = 100
# Directions of less than this part of the mean variance are stepped along as if they had it.
FLOOR = 1e-2
# The metric may shrink again, as the curvature of the loss does while it falls.
SHRINK = 0.9


@dataclass(frozen=True)
class GroupPenalty:
    """``sum_g thresholds_g ||W_g|| + ridge / 2 ||W||^2``."""

    group_of: Tensor
    """``[R]``."""
    thresholds: Tensor
    """``[G]``, float64."""
    ridge: float

    def norms(self, body: Tensor) -> Tensor:
        """Norms ``[G]``, float64, of the groups of ``[C, R]``."""
        return self._sums(body.double().square().sum(0)).sqrt()

    def value(self, body: Tensor) -> float:
        """The penalty of weights ``[C, R]``."""
        norms = self.norms(body)
        return float(self.thresholds @ norms + self.ridge / 2 * (norms @ norms))

    def prox(self, point: Tensor, metric: Tensor) -> Tensor:
        """Minimise ``sum_r metric_r / 2 ||v_r - point_r||^2`` plus the penalty over v.

        The ridge is part of the metric: completing the square moves and scales the point. Within a group, v is
        ``metric * point / (metric + threshold / t)`` with t its norm, which Newton's method finds: one over the norm,
        as a function of t, is concave, so from the left it never overshoots.
        """
        full = metric + self.ridge
        pulled = (metric / full) * point.double()
        squares = (full * pulled).square().sum(0)
        norms = self._sums(squares).sqrt()
        alive = norms > self.thresholds
        largest = torch.zeros_like(norms).scatter_reduce_(0, self.group_of, full, "amax")
        t = ((norms - self.thresholds) / largest.clamp(min=1e-300)).where(alive, 1.0)
        for _ in range(MAX_NEWTON):
            below = full * t[self.group_of] + self.thresholds[self.group_of]
            terms = squares / below.square()
            total = self._sums(terms).where(alive, 1.0)
            slope = self._sums(terms * full / below).where(alive, 1.0)
            # Zero of total ** -1/2 - 1.
            change = total * (1 - total.rsqrt()) * total.sqrt() / slope
            t = t + change.where(alive, 0.0)
            if bool((change.abs() <= 1e-14 * t)[alive].all()):
                break
        scale = full / (full + self.thresholds[self.group_of] / t[self.group_of])
        return (pulled * (scale * alive[self.group_of])).to(point.dtype)

    def _sums(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(self.thresholds).index_add_(0, self.group_of, rows)


class ProximalRun:
    """One minimisation."""

    def __init__(
        self, design: Design, loss: WeightedLoss, penalty: GroupPenalty, params: Tensor, scale: float
    ) -> None:
        """Start from `params`; `scale` is a first guess of the curvature of the loss."""
        self.design, self.loss, self.penalty = design, loss, penalty
        variances = design.variances.double()
        floor = FLOOR * variances.mean() if len(variances) else variances.sum()
        self._metric = torch.cat([variances + floor, variances.new_ones(1)])  # [R + 1]
        # The Hessian of the cross entropy is at most 1/2, and a sum of G groups has at most G times their variances.
        self._largest = max(1, len(torch.unique(penalty.group_of))) / 2
        self.scale = min(scale, self._largest)
        self.params = params.to(design.dtype)
        self.logits = self._logits(self.params)
        self._momentum = 1.0
        self._ahead, self._ahead_logits = self.params, self.logits

    def advance(self) -> None:
        """One iteration, with as many trials of the metric as it takes."""
        gradient = self.design.adjoint(self.loss.evaluate(self._ahead_logits).residual)[0]
        self.scale *= SHRINK
        while True:
            metric = self.scale * self._metric
            point = self._ahead - gradient / metric.to(gradient.dtype)
            params = torch.cat([self.penalty.prox(point[:, :-1], metric[:-1]), point[:, -1:]], dim=1)
            step = params - self._ahead
            moved = self._logits(step)
            square = float(metric @ step.double().square().sum(0))
            if (
                self.scale >= self._largest
                or float(self.loss.bregman(self._ahead_logits, moved)) <= square / 2
            ):
                break
            self.scale = min(2 * self.scale, self._largest)
        self._accelerate(params, self._ahead_logits + moved, metric)

    def _accelerate(self, params: Tensor, logits: Tensor, metric: Tensor) -> None:
        """Look ahead, unless the last look went the wrong way."""
        moved = (params - self.params).double()
        wrong = float((metric * (self._ahead - params).double() * moved).sum()) > 0
        before, before_logits = self.params, self.logits
        self.params, self.logits = params, logits
        if wrong:
            self._restart()
            return
        momentum = (1 + (1 + 4 * self._momentum**2) ** 0.5) / 2
        factor = (self._momentum - 1) / momentum
        self._momentum = momentum
        self._ahead = params + factor * (params - before)
        self._ahead_logits = logits + factor * (logits - before_logits)

    def _restart(self) -> None:
        self._momentum = 1.0
        self._ahead, self._ahead_logits = self.params, self.logits

    def _logits(self, params: Tensor) -> Tensor:
        return self.design.logits(params.unsqueeze(0))
