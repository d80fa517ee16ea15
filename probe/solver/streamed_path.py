"""A path of penalties for features that are read anew in every pass, certified like one in memory.

The bound on the suboptimality presupposes the best bias for given weights. Newton's method brings the bias there, one pass a step, and what is
left is counted. With g and H the gradient and second derivative in the bias, let ``nu^2 = g^T H^-1 g``. The loss is above its minimum over the
bias by at most nu^2 (twice the quadratic model, which covers the change of H along such a short step), and the gradient in the weights moves by at
most ``sqrt(2 S nu^2)`` on the way, with S the largest eigenvalue of the second derivative in the weights: at most half the total variance.

Shapes: N samples, F features, P penalties, C classes. Parameters are ``[P, C, F + 1]``; the last is the bias.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from featcache.probing.inputs.features import Features
from featcache.probing.solver.bias import newton_step
from featcache.probing.solver.certificate import MAX_ITERATIONS, TOLERANCE, Certificate, OnSolved, Tolerance
from featcache.probing.solver.design import Preconditioner
from featcache.probing.solver.lbfgs import HISTORY, inner_product
from featcache.probing.solver.logistic import FLOAT64_VALUES, ROUNDS, Targets, parts_of
from featcache.probing.solver.loss import WeightedLoss
from featcache.probing.solver.solved_parts import SolvedParts
from featcache.probing.solver.spaces import MAX_EIGEN, ROWS_PER_FEATURE, Coefficients, Path
from featcache.probing.solver.streamed_lbfgs import State, StreamedMinimisation
from featcache.probing.solver.streamed_objective import StreamedEvaluation, StreamedObjective

# Share of a tolerance that a bias which is not quite at its best may use up.
BIAS_SHARE = 0.01
MAX_POLISHES = 20
# A step that changes logits by more is shortened: H changes by a factor of at most e along a step of this range.
LONGEST_STEP = 1.0


@dataclass(frozen=True)
class StreamedFitting:
    """Samples to fit heads to, and what a first pass over them gives."""

    objective: StreamedObjective
    preconditioner: Preconditioner
    total_variance: float
    """Sum over the features."""
    gradient_norm_at_zero: float
    """Of the loss, at zero weights."""

    @classmethod
    def of(
        cls,
        features: Features,
        targets: Targets,
        max_eigen: int = MAX_EIGEN,
        on_pass: Callable[[float], None] | None = None,
    ) -> Self:
        """Measure `features` ``[N, F]``.

        Args:
            features: of the samples.
            targets: their labels and weights.
            max_eigen: with more features than that, the preconditioner is diagonal.
            on_pass: called with the seconds of every evaluation of the objective.
        """
        loss, num_classes = targets.loss, len(targets.classes)
        size = (num_classes, features.num_features)
        sums = torch.zeros(size, dtype=torch.float64, device=features.device)
        square = torch.zeros((), dtype=torch.float64, device=features.device)
        for rows, block in features.blocks():
            weights = loss.weights[rows]
            exact = block.double()
            square += weights @ exact.square().sum(1)
            sums.index_add_(0, loss.targets[rows], exact.mul_(weights[:, None]))
        mean = sums.sum(0)
        shares = torch.zeros(num_classes, dtype=torch.float64, device=features.device)
        shares.index_add_(0, loss.targets, loss.weights)
        # At zero weights every class has the same probability, and the mean is taken off.
        at_zero = torch.cat([sums - shares[:, None] * mean, (shares - 1 / num_classes)[:, None]], dim=1)
        return cls(
            StreamedObjective(features, mean, loss, on_pass),
            _preconditioner(features, loss, mean, max_eigen),
            total_variance=max(0.0, float(square - mean.square().sum())),
            gradient_norm_at_zero=float(torch.linalg.vector_norm(at_zero)),
        )

    def coefficients(self, params: Tensor) -> Coefficients:
        """Turn parameters into weights and biases of features that are not centered."""
        body = params[..., :-1].double()
        return Coefficients(body, params[..., -1].double() - body @ self.objective.mean)

    def params(self, coefficients: Coefficients) -> Tensor:
        """Turn coefficients into parameters, float64."""
        bias = coefficients.bias + coefficients.body @ self.objective.mean
        return torch.cat([coefficients.body, bias.unsqueeze(2)], dim=2)


def _preconditioner(features: Features, loss: WeightedLoss, mean: Tensor, max_eigen: int) -> Preconditioner:
    """Decompose the covariance of some of the samples, in float32."""
    num_features = features.num_features
    every = max(1, features.num_samples // (ROWS_PER_FEATURE * num_features))
    weights = loss.weights[::every]
    scale = (weights / weights.sum()).sqrt().float()
    diagonal = num_features > max_eigen
    shape = (num_features,) if diagonal else (num_features, num_features)
    total = torch.zeros(shape, device=features.device)
    center = mean.float()
    for rows, block in features.select(slice(None, None, every)).blocks():
        scaled = (block.float() - center).mul_(scale[rows, None])
        total += scaled.square().sum(0) if diagonal else scaled.T @ scaled
    if diagonal:
        return Preconditioner(total, None)
    variances, basis = torch.linalg.eigh(total)
    return Preconditioner(variances.clamp(min=0.0), basis)


@dataclass(frozen=True)
class StreamedLimits:
    """When a minimisation ends, and how much it remembers."""

    tolerance: float = TOLERANCE
    max_iterations: int = MAX_ITERATIONS
    """Of each penalty."""
    history: int = HISTORY
    """Steps that L-BFGS remembers."""


def solve_streamed_path(
    fitting: StreamedFitting,
    penalties: Sequence[float],
    limits: StreamedLimits,
    *,
    start: Coefficients | None = None,
    on_solved: OnSolved | None = None,
    solved: SolvedParts | None = None,
) -> Path:
    """Solve for all penalties, from strong to weak; see `featcache.probing.solver.logistic.solve_path`."""
    loss, mean = fitting.objective.loss, fitting.objective.mean
    device, num_classes = mean.device, int(loss.targets.max()) + 1
    limit = Tolerance(limits.tolerance * fitting.gradient_norm_at_zero, limits.tolerance)
    last = torch.zeros(1, num_classes, len(mean) + 1, dtype=torch.float64, device=device)
    if start is not None:
        last = fitting.params(start)
    params = last.repeat(len(penalties), 1, 1)
    certificates: dict[int, Certificate] = {}
    for part in parts_of(penalties, num_classes, device):
        chosen = [penalties[index] for index in part]
        known = None if solved is None else solved.read(chosen)
        if known is None:
            problem = _Part(fitting, chosen, limit, limits, solved)
            params[part], certified = problem.solve(last.expand(len(part), -1, -1))
            if solved is not None:
                solved.write(chosen, Path(fitting.coefficients(params[part]), certified))
        else:
            params[part], certified = fitting.params(known.coefficients), known.certificates
        certificates.update(zip(part, certified, strict=True))
        last = params[part[-1:]]
        if on_solved is not None:
            on_solved(len(part))
    return Path(fitting.coefficients(params), [certificates[index] for index in range(len(penalties))])


@dataclass
class _Part:
    """Penalties that are solved side by side: in float32 as far as that goes, then in float64 what is not good enough yet."""

    fitting: StreamedFitting
    chosen: Sequence[float]
    limit: Tolerance
    limits: StreamedLimits
    solved: SolvedParts | None
    _progress: State = field(default_factory=dict)
    """What the rounds so far gave; with the state of the minimisation, all that a resumed run needs."""

    def solve(self, params: Tensor) -> tuple[Tensor, list[Certificate]]:
        """Return parameters ``[P, C, F + 1]``, float64, and certificates."""
        features, device = self.fitting.objective.features, params.device
        penalties = torch.tensor(self.chosen, dtype=torch.float64, device=device)
        # The bias is still polished, which moves the gradient a little.
        inner = Tolerance(self.limit.gradient / 2, self.limit.gap / 2)
        large = features.num_samples * features.num_features > FLOAT64_VALUES
        rounds = [torch.float32] * large + [torch.float64] * ROUNDS
        state = None if self.solved is None else self.solved.read_state(self.chosen)
        progress = self._progress = _begin(params.double()) if state is None else _take(state, "progress.")
        for number in range(int(progress["round"]), len(rounds)):
            progress["round"] = torch.tensor(number)
            rest, iterations = progress["rest"], progress["iterations"]
            run = StreamedMinimisation(
                self.fitting.objective,
                self.fitting.preconditioner,
                penalties[rest],
                rounds[number],
                self.limits.history,
            )
            left = self.limits.max_iterations - int(iterations[rest].max())
            own = None if state is None else _take(state, "own.")
            found, taken = run.run(progress["params"][rest], inner, left, own, self._keep)
            state = None
            found, figures = self._certify(found.double(), penalties[rest], rounds[number])
            progress["params"][rest], progress["figures"][:, rest] = found, figures
            iterations[rest] += taken
            progress["rest"] = rest[(figures[3] == 0) & (iterations[rest] < self.limits.max_iterations)]
            if not len(progress["rest"]):
                break
        return progress["params"], _certificates(penalties, progress["figures"], progress["iterations"])

    def _keep(self, state_of: Callable[[], State]) -> None:
        if self.solved is None:
            return
        self.solved.write_state(
            self.chosen, lambda: _prefixed(self._progress, "progress.") | _prefixed(state_of(), "own.")
        )

    def _certify(self, params: Tensor, penalties: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Bring the bias to its best, and measure objective, gradient and gap in float64: ``[4, P]`` with `converged`."""
        # The mean over classes changes no probability; without it, weights are smaller.
        params = params - params.mean(1, keepdim=True)
        for attempt in range(MAX_POLISHES):
            # The first step takes most of the way, for which the faster type is enough.
            exact = attempt > 0 or dtype == torch.float64
            at = self.fitting.objective.evaluate(
                params, penalties, torch.float64 if exact else dtype, bias_hessian=True
            )
            figures, good = self._figures(params, at, penalties)
            if exact and bool(good.all()):
                break
            assert at.bias_hessian is not None
            step = newton_step(at.bias_hessian, at.gradient[..., -1])
            span = step.amax(1) - step.amin(1)
            step *= (LONGEST_STEP / span.clamp(min=1e-300)).clamp(max=1.0)[:, None]
            moved = params.clone()
            moved[..., -1] -= torch.where(good[:, None] & exact, 0.0, step)
            if attempt < MAX_POLISHES - 1:
                params = moved
        return params, figures

    def _figures(self, params: Tensor, at: StreamedEvaluation, penalties: Tensor) -> tuple[Tensor, Tensor]:
        """Return objective, gradient norm, gap and convergence, ``[4, P]``, and whether the bias is good enough, ``[P]``."""
        body, bias = at.gradient[..., :-1], at.gradient[..., -1]
        assert at.bias_hessian is not None
        step = newton_step(at.bias_hessian, bias)
        decrement = (bias * step).sum(1).clamp(min=0.0)
        moved = (self.fitting.total_variance * decrement).sqrt()
        norm = inner_product(body, body).sqrt()
        gap = (norm + moved).square() / (2 * penalties) + decrement
        short = step.amax(1) - step.amin(1) <= LONGEST_STEP / 2
        good = short & (moved <= BIAS_SHARE * self.limit.gradient)
        good &= decrement <= BIAS_SHARE * self.limit.gap * at.objective
        total = (norm.square() + bias.square().sum(1)).sqrt()
        met = self.limit.met(total, gap, at.objective) & short
        return torch.stack([at.objective, total, gap, met.double()]), good


def _begin(params: Tensor) -> State:
    count, device = len(params), params.device
    return {
        "round": torch.tensor(0),
        "params": params.clone(),
        "figures": torch.zeros(4, count, dtype=torch.float64, device=device),
        "iterations": torch.zeros(count, dtype=torch.int64, device=device),
        "rest": torch.arange(count, device=device),
    }


def _prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _take(state: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _certificates(penalties: Tensor, figures: Tensor, iterations: Tensor) -> list[Certificate]:
    rows = zip(penalties.tolist(), figures.T.tolist(), iterations.tolist(), strict=True)
    return [
        Certificate(penalty, objective, norm, gap, count, bool(converged))
        for penalty, (objective, norm, gap, converged), count in rows
    ]
