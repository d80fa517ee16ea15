"""Multinomial logistic regression with a group lasso: it leaves whole groups of features (layers, say) without weight.

The objective, for N samples with weights w that are normalised to sum 1 here and features in groups g of size_g, is

    sum_i w_i * cross_entropy(W x_i + b, y_i) + penalty * sum_g sqrt(size_g) * ||W_g|| + ridge / 2 * ||W||^2

with the bias not penalised. How exact a solution is, a duality gap proves: the residuals of any head, shrunk until no
group exceeds its threshold, are feasible in the dual problem, whose value no head goes below.

Shapes: N samples, R dimensions, G groups, C classes. Parameters are ``[C, R + 1]``; the last is the bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.probing.solver.bias import polish_bias
from featcache.probing.solver.certificate import MAX_ITERATIONS, TOLERANCE, Certificate, OnSolved, Tolerance
from featcache.probing.solver.design import Design
from featcache.probing.solver.groups import GroupedDesign
from featcache.probing.solver.loss import WeightedLoss
from featcache.probing.solver.proximal import GroupPenalty, ProximalRun

# Penalties when none are given: that which leaves no group times these, strong to weak.
GRID = tuple(10.0 ** (-exponent / 4) for exponent in range(1, 13))
# Iterations between two looks at the gap.
CHECK_EVERY = 10
# Float32 is not tried where it cannot be enough.
FLOAT32_TOLERANCE = 1e-6


@dataclass(frozen=True)
class GroupSolution:
    """One head, in the basis of the groups."""

    params: Tensor
    """``[C, R + 1]``, float64."""
    certificate: Certificate
    kept: tuple[int, ...]
    """The groups that are left with weight."""


@dataclass(frozen=True)
class _Measured:
    """A point with the best bias, and how far it may be from the minimum, in float64."""

    params: Tensor
    objective: float
    gap: float
    stationarity: float
    """Norm of the smallest subgradient."""
    pulls: Tensor
    """Norms ``[G]`` of the gradient of the smooth part in each group."""

    def within(self, limit: Tolerance) -> bool:
        """Whether both figures are."""
        return self.stationarity <= limit.gradient and self.gap <= limit.gap * self.objective


def strongest_penalty(grouped: GroupedDesign, loss: WeightedLoss) -> float:
    """The smallest penalty that leaves every group without weight."""
    zero = _zero(grouped, loss)
    penalty = GroupPenalty(grouped.group_of, grouped.sizes.sqrt(), 0.0)
    return float((_measure(grouped.design, loss, penalty, zero).pulls / grouped.sizes.sqrt()).max())


def default_group_penalties(grouped: GroupedDesign, loss: WeightedLoss) -> list[float]:
    """Twelve penalties from strong to weak."""
    strongest = strongest_penalty(grouped, loss)
    return [factor * (strongest if strongest > 0 else 1.0) for factor in GRID]


def solve_group_path(
    grouped: GroupedDesign,
    loss: WeightedLoss,
    penalties: Sequence[float],
    *,
    ridge: float = 0.0,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    start: Tensor | None = None,
    on_solved: OnSolved | None = None,
) -> list[GroupSolution]:
    """Solve for all penalties, from strong to weak, each from the last.

    Args:
        grouped: the features.
        loss: targets and weights.
        penalties: positive, in any order.
        ridge: of the L2 term, not negative.
        tolerance: a solution has converged when its smallest subgradient is at most this fraction of the gradient at
            zero weights, and its duality gap at most this fraction of the objective.
        max_iterations: of each.
        start: parameters ``[C, R + 1]`` to start from; by default zero weights.
        on_solved: called as penalties are solved.

    Returns:
        The solutions in the order of `penalties`.
    """
    params = _zero(grouped, loss)
    free = GroupPenalty(grouped.group_of, torch.zeros_like(grouped.sizes), 0.0)
    at_zero = _measure(grouped.design, loss, free, params).stationarity
    limit = Tolerance(tolerance * at_zero, tolerance)
    params = params if start is None else start.double()
    found: dict[int, GroupSolution] = {}
    for index in sorted(range(len(penalties)), key=lambda index: -penalties[index]):
        penalty = GroupPenalty(grouped.group_of, penalties[index] * grouped.sizes.sqrt(), ridge)
        measured, iterations = _solve(grouped, loss, penalty, params, limit, max_iterations)
        params = measured.params
        certificate = Certificate(
            penalties[index],
            measured.objective,
            measured.stationarity,
            measured.gap,
            iterations,
            measured.within(limit),
        )
        kept = grouped.norms(params[:, :-1]).nonzero().squeeze(1).tolist()
        found[index] = GroupSolution(params, certificate, tuple(kept))
        if on_solved is not None:
            on_solved(1)
    return [found[index] for index in range(len(penalties))]


def _solve(
    grouped: GroupedDesign,
    loss: WeightedLoss,
    penalty: GroupPenalty,
    params: Tensor,
    limit: Tolerance,
    max_iterations: int,
) -> tuple[_Measured, int]:
    """Solve with the groups that matter, and take in those that turn out to, until all is well."""
    measured = _measure(grouped.design, loss, penalty, params)
    iterations = 0
    chosen = grouped.norms(params[:, :-1]) > 0
    dtypes = [torch.float32, torch.float64] if limit.gap >= FLOAT32_TOLERANCE else [torch.float64]
    for dtype in dtypes:
        while iterations < max_iterations and not measured.within(limit):
            wanted = chosen | (measured.pulls > penalty.thresholds)
            grown = bool((wanted != chosen).any())
            chosen = wanted
            design, rows = grouped.part(chosen)
            part = GroupPenalty(grouped.group_of[rows], penalty.thresholds, penalty.ridge)
            held = torch.cat([measured.params[:, rows], measured.params[:, -1:]], dim=1)
            solved, taken = _minimise(design, dtype, loss, part, held, limit, max_iterations - iterations)
            iterations += taken
            full = torch.zeros_like(measured.params)
            full[:, rows], full[:, -1] = solved[:, :-1], solved[:, -1]
            measured = _measure(grouped.design, loss, penalty, full)
            if not grown and not bool((measured.pulls > penalty.thresholds)[~chosen].any()):
                break
    return measured, iterations


def _minimise(
    design: Design,
    dtype: torch.dtype,
    loss: WeightedLoss,
    penalty: GroupPenalty,
    params: Tensor,
    limit: Tolerance,
    max_iterations: int,
) -> tuple[Tensor, int]:
    """Solve with the groups of `design` alone; ends at the limit, or where rounding lets nothing improve."""
    inner = Tolerance(limit.gradient / 2, limit.gap / 2)
    run = ProximalRun(design.to(dtype), loss, penalty, params, scale=1 / len(params))
    best, since = float("inf"), 0
    for iteration in range(1, max_iterations + 1):
        run.advance()
        if iteration % CHECK_EVERY and iteration < max_iterations:
            continue
        measured = _measure(design, loss, penalty, run.params.double())
        smaller = measured.gap < 0.9 * best
        best, since = (measured.gap, 0) if smaller else (best, since + 1)
        if measured.within(inner) or since >= 10:
            return measured.params, iteration
    return measured.params, max_iterations


def _measure(design: Design, loss: WeightedLoss, penalty: GroupPenalty, params: Tensor) -> _Measured:
    """Bring the bias to its best; then objective, duality gap and smallest subgradient."""
    polished, evaluation = polish_bias(design.logits(params.unsqueeze(0)), params.unsqueeze(0), loss)
    params, body = polished[0], polished[0, :, :-1]
    gradient = design.adjoint(evaluation.residual)[0]
    pulls = penalty.norms(gradient[:, :-1])
    objective = float(evaluation.loss) + penalty.value(body)
    # Residuals between 0 and those found are those of distributions between targets and probabilities.
    shrink = float((penalty.thresholds / pulls.clamp(min=1e-300)).clamp(max=1.0).min()) if len(pulls) else 1.0
    dual = float(loss.entropy(shrink * evaluation.residual))
    if penalty.ridge > 0:
        excess = (pulls - penalty.thresholds).clamp(min=0.0)
        dual = max(dual, float(loss.entropy(evaluation.residual) - (excess @ excess) / (2 * penalty.ridge)))
    norms = penalty.norms(body)
    of_rows = norms[penalty.group_of]
    scale = (penalty.thresholds[penalty.group_of] / of_rows).where(of_rows > 0, 0.0) + penalty.ridge
    active = gradient[:, :-1] + scale * body
    idle = (pulls - penalty.thresholds).clamp(min=0.0).where(norms == 0, 0.0)
    squares = active[:, of_rows > 0].square().sum() + idle.square().sum() + gradient[:, -1].square().sum()
    return _Measured(params, objective, max(objective - dual, 0.0), float(squares.sqrt()), pulls)


def _zero(grouped: GroupedDesign, loss: WeightedLoss) -> Tensor:
    num_classes = int(loss.targets.max()) + 1
    return torch.zeros(
        num_classes, len(grouped.group_of) + 1, dtype=torch.float64, device=grouped.sizes.device
    )
