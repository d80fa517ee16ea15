"""L-BFGS for several penalties at once where every evaluation is a pass over the features.

The line search of `featcache.probing.solver.lbfgs` keeps the logits of all samples. Here a trial step costs a pass, so the search ends at the
first step that decreases objective and slope enough (the strong Wolfe conditions); with the scaled preconditioner the first trial nearly always does.

Shapes: F features, P penalties, C classes. Parameters are ``[P, C, F + 1]``.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from featcache.probing.solver.certificate import Tolerance
from featcache.probing.solver.design import Preconditioner
from featcache.probing.solver.lbfgs import PATIENCE, History, inner_product
from featcache.probing.solver.streamed_objective import StreamedObjective

# Wolfe conditions: the decrease as a fraction of what the slope promises, and the slope at the accepted step as a fraction of that before.
LEAST_DECREASE = 1e-4
SLOPE_FRACTION = 0.9
MAX_TRIALS = 10
# A new trial keeps this distance from the ends of its bracket, as a fraction of the bracket.
MARGIN = 0.1
# Growth of a step that still goes down steeply.
GROWTH = 4.0

State = dict[str, Tensor]
OnIteration = Callable[[Callable[[], State]], None]
"""Called after every iteration with a function that returns the state of the minimisation, to save."""


class StreamedMinimisation:
    """Minimises the objectives of P penalties; the state can be saved after every iteration."""

    def __init__(
        self,
        objective: StreamedObjective,
        preconditioner: Preconditioner,
        penalties: Tensor,
        dtype: torch.dtype,
        history: int,
    ) -> None:
        """Prepare a minimisation.

        Args:
            objective: what is minimised.
            preconditioner: of the features.
            penalties: ``[P]``, float64.
            dtype: type of products, parameters and history.
            history: number of steps that are remembered.
        """
        self._objective, self._preconditioner = objective, preconditioner
        self._penalties, self._dtype, self._history_size = penalties, dtype, history

    def run(
        self,
        params: Tensor,
        tolerance: Tolerance,
        max_iterations: int,
        state: Mapping[str, Tensor] | None = None,
        on_iteration: OnIteration | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Minimise from `params` on, or from a saved state.

        Returns:
            Parameters ``[P, C, F + 1]``, and the iterations ``[P]`` that each penalty took.
        """
        self._start(params, state)
        while True:
            done = tolerance.met(
                self._at.norm, self._at.norm.square() / (2 * self._own()), self._at.objective
            )
            done |= self._since >= PATIENCE[self._dtype]
            if self._iteration >= max_iterations:
                done = torch.ones_like(done)
            self._retire(done)
            if not len(self._active):
                return self._found, self._iterations
            self._advance()
            self._iteration += 1
            if on_iteration is not None:
                on_iteration(self._state)

    def _start(self, params: Tensor, state: Mapping[str, Tensor] | None) -> None:
        device = self._penalties.device
        self._found = params.to(self._dtype).clone()
        self._iterations = torch.zeros_like(self._penalties, dtype=torch.int64)
        self._active = torch.arange(len(self._penalties), device=device)
        self._history = History(self._history_size)
        self._iteration = 0
        if state is not None:
            self._found, self._iterations = state["found"].to(self._dtype), state["iterations"]
            self._active, self._iteration = state["active"], int(state["iteration"])
            self._history.load(state)
        self._params = self._found[self._active]
        self._at = self._objective.evaluate(self._params, self._own(), self._dtype)
        self._best, self._lowest = self._at.norm, self._at.objective
        self._since = torch.zeros_like(self._active)
        if state is not None:
            self._best, self._lowest, self._since = state["best"], state["lowest"], state["since"]

    def _state(self) -> State:
        self._found[self._active] = self._params
        own = {
            "found": self._found,
            "iterations": self._iterations,
            "active": self._active,
            "iteration": torch.tensor(self._iteration),
            "best": self._best,
            "lowest": self._lowest,
            "since": self._since,
        }
        return own | self._history.state()

    def _own(self) -> Tensor:
        """Penalties of the active minimisations."""
        return self._penalties[self._active]

    def _retire(self, done: Tensor) -> None:
        """Take out the minimisations that are done."""
        if not bool(done.any()):
            return
        self._found[self._active[done]] = self._params[done]
        self._iterations[self._active[done]] = self._iteration
        left = (~done).nonzero().squeeze(1)
        for name in ("_active", "_params", "_best", "_lowest", "_since"):
            setattr(self, name, getattr(self, name)[left])
        self._at = self._at.of(left)
        self._history.keep(left)

    def _advance(self) -> None:
        """Do one iteration."""
        gradient = self._at.gradient.to(self._dtype)
        direction = self._history.direction(
            gradient, self._preconditioner, self._at.curvature, self._own(), scaled=True
        )
        step = self._line_search(direction)
        taken = direction.mul_(step.to(self._dtype)[:, None, None])
        self._history.add(taken, self._at.gradient.to(self._dtype) - gradient)
        eps = torch.finfo(self._dtype).eps
        norm, objective = self._at.norm, self._at.objective
        better = (norm < self._best) | (objective < (1 - eps) * self._lowest)
        self._best, self._lowest = torch.minimum(norm, self._best), torch.minimum(objective, self._lowest)
        self._since = torch.where(better, 0, self._since + 1)

    def _line_search(self, direction: Tensor) -> Tensor:
        """Move along `direction` by the steps ``[P]`` returned, which satisfy the Wolfe conditions or were tried last."""
        start, objective, penalties = self._params, self._at.objective.clone(), self._own()
        slope = inner_product(self._at.gradient, direction.double())
        # Rounding blurs the objective of a converged run; the slope alone decides there.
        slack = 4 * torch.finfo(self._dtype).eps * objective
        step, low = torch.ones_like(slope), torch.zeros_like(slope)
        high, low_slope = torch.full_like(slope, torch.inf), slope.clone()
        pending = torch.arange(len(slope), device=slope.device)
        self._params, taken = start.clone(), step.clone()
        self._at = self._at.copy()  # those before are still compared with
        for _ in range(MAX_TRIALS):
            own_step, own_direction = step[pending], direction[pending]
            trial = start[pending] + own_step.to(self._dtype)[:, None, None] * own_direction
            found = self._objective.evaluate(trial, penalties[pending], self._dtype)
            self._params[pending], taken[pending] = trial, own_step
            self._at.put(pending, found)
            own_slope = inner_product(found.gradient, own_direction.double())
            limit = objective[pending] + LEAST_DECREASE * own_step * slope[pending] + slack[pending]
            decreased = found.objective <= limit
            good = decreased & (own_slope.abs() <= -SLOPE_FRACTION * slope[pending])
            step[pending], low[pending], low_slope[pending], high[pending] = _next_trial(
                own_step, own_slope, decreased, good, (low[pending], low_slope[pending], high[pending])
            )
            pending = pending[~good]
            if not len(pending):
                break
        return taken


def _next_trial(
    step: Tensor, slope: Tensor, decreased: Tensor, good: Tensor, bracket: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the next steps ``[P]`` of a search on convex functions, and the bracket: its ends and the slope at the lower end."""
    low, low_slope, high = bracket
    beyond = (slope > 0) | ~decreased
    # Zero of the line through both slopes.
    secant = step - slope * (step - low) / (slope - low_slope).clamp(min=1e-300)
    high = torch.where(beyond, step, high)
    secant_from = torch.where(beyond, low, step)
    width = torch.where(high.isinf(), 0.0, high - secant_from)
    inside = torch.minimum(
        torch.maximum(secant, secant_from + MARGIN * width), secant_from + (1 - MARGIN) * width
    )
    # Without an upper end, the slope is still steep: go on, by no more than a factor.
    ahead = torch.minimum(secant, GROWTH * step)
    following = torch.where(high.isinf(), torch.maximum(ahead, 1.5 * step), inside)
    low, low_slope = torch.where(beyond, low, step), torch.where(beyond, low_slope, slope)
    return torch.where(good, step, following), low, low_slope, high
