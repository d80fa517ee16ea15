"""L-BFGS for several penalties at once, preconditioned, with a line search that costs no matrix product.

Logits are linear in the parameters, so those along a search direction follow from one product, and the step can be
as good as wanted for little. An iteration is two products: logits of the direction, gradient.

Shapes: N samples, R dimensions, P penalties, C classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from featcache.probing.solver.certificate import Tolerance
from featcache.probing.solver.design import Design, Preconditioner
from featcache.probing.solver.loss import Evaluation, WeightedLoss

HISTORY = 10
MAX_LINE_STEPS = 20
# The slope at the accepted step, as a fraction of that at its start.
SLOPE_FRACTION = 0.3
# Iterations without a smaller gradient or objective after which arithmetic, not the problem, is the limit. Gradients
# do not shrink step by step, so what comes last is given time.
PATIENCE = {torch.float32: 20, torch.float64: 100}


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Products ``[P]``, float64, of ``[P, C, R]`` each."""
    rows: Tensor = torch.linalg.vecdot(a, b)
    return rows.sum(1, dtype=torch.float64)


class History:
    """The last steps and changes of the gradient."""

    def __init__(self, size: int = HISTORY) -> None:
        """Begin without steps; at most `size` are kept."""
        self._size = size
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """Remember a step and what it did to the gradient, ``[P, C, R + 1]`` each."""
        curvature = inner_product(step, change)
        # A pair that rounding has spoilt is left out by weight 0.
        inverse = curvature.reciprocal().where(curvature > 0, 0.0)
        self._pairs = [*self._pairs[1 - self._size :], (step, change, inverse)]

    def keep(self, indices: Tensor) -> None:
        """Leave only some of the P minimisations."""
        self._pairs = [(s[indices], y[indices], rho[indices]) for s, y, rho in self._pairs]

    def state(self) -> dict[str, Tensor]:
        """Return the steps as tensors to save."""
        names = ("step", "change", "inverse")
        return {
            f"{name}.{index}": tensor
            for index, pair in enumerate(self._pairs)
            for name, tensor in zip(names, pair, strict=True)
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        count = sum(name.startswith("inverse.") for name in state)
        self._pairs = [
            (state[f"step.{index}"], state[f"change.{index}"], state[f"inverse.{index}"])
            for index in range(count)
        ]

    def direction(
        self,
        gradient: Tensor,
        preconditioner: Preconditioner,
        curvature: Tensor,
        penalties: Tensor,
        *,
        scaled: bool = False,
    ) -> Tensor:
        """Return the quasi-Newton direction (the two-loop recursion).

        With `scaled`, the preconditioner is multiplied by the factor that fits the last step. Then a step of 1 nearly always does, which
        halves the number of evaluations where the line search needs a pass over the features for each.
        """
        q = gradient.clone()
        alphas = []
        for step, change, inverse in reversed(self._pairs):
            alpha = inverse * inner_product(step, q)
            q -= alpha.to(q.dtype)[:, None, None] * change
            alphas.append(alpha)
        q = preconditioner.apply(q, curvature, penalties)
        if scaled and self._pairs:
            _, change, inverse = self._pairs[-1]
            square = inner_product(change, preconditioner.apply(change, curvature, penalties))
            factor = (inverse * square).reciprocal().where(inverse * square > 0, 1.0)
            q *= factor.to(q.dtype)[:, None, None]
        for (step, change, inverse), alpha in zip(self._pairs, reversed(alphas), strict=True):
            beta = inverse * inner_product(change, q)
            q += (alpha - beta).to(q.dtype)[:, None, None] * step
        return q.neg_()


class _Run:
    """P minimisations side by side; those that are through are taken out."""

    def __init__(self, design: Design, loss: WeightedLoss, penalties: Tensor, params: Tensor) -> None:
        self.design = design
        self.loss = loss
        self.penalties = penalties
        self.params = params
        self.logits = design.logits(params)
        self.history = History()
        self.evaluate()

    def evaluate(self) -> None:
        """Objective, gradient and curvature where the run stands."""
        found: Evaluation = self.loss.evaluate(self.logits)
        weights = self.params[..., :-1]
        self.curvature = found.curvature
        self.objective = found.loss + self.penalties * inner_product(weights, weights) / 2
        self.gradient = self.design.adjoint(found.residual)
        self.gradient[..., :-1] += self.penalties.to(weights.dtype)[:, None, None] * weights
        self.norm = inner_product(self.gradient, self.gradient).sqrt()

    def gap(self) -> Tensor:
        """Estimate ``[P]`` of the bound on the suboptimality once the bias is at its best, which moves the gradient."""
        return self.norm.square() / (2 * self.penalties)

    def keep(self, indices: Tensor) -> None:
        """Leave only some of the minimisations."""
        for name in ("penalties", "objective", "norm", "curvature", "params", "logits", "gradient"):
            setattr(self, name, getattr(self, name)[indices])
        self.history.keep(indices)

    def advance(self) -> None:
        """One iteration."""
        direction = self.history.direction(
            self.gradient, self.design.preconditioner, self.curvature, self.penalties
        )
        moved = self.design.logits(direction)
        step = self._line_search(direction, moved)
        factor = step.to(direction.dtype)[:, None, None]
        before = self.gradient
        taken = direction.mul_(factor)
        self.params = self.params + taken
        self.logits.addcmul_(moved, factor.expand_as(moved))
        self.evaluate()
        self.history.add(taken, self.gradient - before)

    def _line_search(self, direction: Tensor, moved: Tensor) -> Tensor:
        """Step ``[P]`` at which the slope has nearly vanished: safeguarded Newton on a convex function."""
        weights, body = self.params[..., :-1], direction[..., :-1]
        inner, square = inner_product(weights, body), inner_product(body, body)
        norm = inner_product(weights, weights)
        start = inner_product(self.gradient, direction)
        step = torch.ones_like(start)
        low, high = torch.zeros_like(start), torch.full_like(start, torch.inf)
        # Rounding blurs the objective of a converged run; the slope alone decides there.
        slack = 4 * torch.finfo(direction.dtype).eps * self.objective
        for _ in range(MAX_LINE_STEPS):
            at = self.loss.slope(self.logits + step.to(moved.dtype)[:, None, None] * moved, moved)
            first = at.first + self.penalties * (inner + step * square)
            second = at.second + self.penalties * square
            value = at.value + self.penalties * (norm / 2 + step * (inner + step * square / 2))
            good = (first.abs() <= -SLOPE_FRACTION * start) & (value <= self.objective + slack)
            if bool(good.all()):
                break
            low = torch.where(first < 0, step, low)
            high = torch.where(first < 0, high, step)
            newton = step - first / second.clamp(min=1e-300)
            limit = torch.where(high.isinf(), 10 * step, high)
            middle = torch.where(high.isinf(), 10 * step, (low + high) / 2)
            inside = (newton > low) & (newton < limit)
            step = torch.where(good, step, torch.where(inside, newton, middle))
        return step


def minimise(
    design: Design,
    loss: WeightedLoss,
    penalties: Tensor,
    params: Tensor,
    tolerance: Tolerance,
    max_iterations: int,
) -> tuple[Tensor, Tensor]:
    """Minimise the objectives of P penalties, from `params` on.

    Args:
        design: the features; its type is the one that is computed in.
        loss: targets and weights.
        penalties: ``[P]``, float64.
        params: ``[P, C, R + 1]``.
        tolerance: where to stop; a minimisation also ends where rounding keeps the gradient from shrinking.
        max_iterations: of each.

    Returns:
        Parameters ``[P, C, R + 1]``, and the iterations ``[P]`` that each took.
    """
    params = params.to(design.dtype).clone()
    iterations = torch.zeros_like(penalties, dtype=torch.int64)
    active = torch.arange(len(penalties), device=penalties.device)
    run = _Run(design, loss, penalties, params)
    best, lowest, since = run.norm, run.objective, torch.zeros_like(active)
    eps = torch.finfo(design.dtype).eps
    for iteration in range(max_iterations + 1):
        done = tolerance.met(run.norm, run.gap(), run.objective) | (since >= PATIENCE[design.dtype])
        if iteration == max_iterations:
            done = torch.ones_like(done)
        if bool(done.any()):
            params[active[done]] = run.params[done]
            iterations[active[done]] = iteration
            left = (~done).nonzero().squeeze(1)
            active, best, lowest, since = active[left], best[left], lowest[left], since[left]
            if not len(left):
                break
            run.keep(left)
        run.advance()
        better = (run.norm < best) | (run.objective < (1 - eps) * lowest)
        best, lowest = torch.minimum(run.norm, best), torch.minimum(run.objective, lowest)
        since = torch.where(better, 0, since + 1)
    return params, iterations
