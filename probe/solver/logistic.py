"""Multinomial logistic regression with an L2 penalty, solved to a certified accuracy.

The objective, for N samples with weights w that are normalised to sum 1 here, is

    objective(W, b) = sum_i w_i * cross_entropy(W x_i + b, y_i) + penalty / 2 * ||W||^2

with the bias not penalised. How exact a solution is, is proved and not hoped for: once the bias is at its best, the
objective is `penalty`-strongly convex in W, so it exceeds its minimum by at most ||gradient||^2 / (2 * penalty).

Shapes: N samples, F features, P penalties, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from featcache.probing.scoring.metrics import class_weights
from featcache.probing.solver.bias import polish_bias
from featcache.probing.solver.certificate import MAX_ITERATIONS, TOLERANCE, Certificate, OnSolved, Tolerance
from featcache.probing.solver.design import Design
from featcache.probing.solver.lbfgs import inner_product, minimise
from featcache.probing.solver.loss import WeightedLoss
from featcache.probing.solver.solved_parts import SolvedParts
from featcache.probing.solver.spaces import Coefficients, Fitting, Path, make_space
from featcache.store.errors import RequestError

# How often a minimisation goes on after its bias was polished.
ROUNDS = 4
# With fewer values than this, arithmetic is not what takes the time, and all of it is float64.
FLOAT64_VALUES = 2**20
# Columns of one product, penalties times classes. Narrower products wait for memory, wider ones gain nothing from
# company and lose the warm start.
BATCH_COLUMNS = {"cpu": 64, "cuda": 1024}
# Penalties when none are given: the mean squared norm of the centred features times these, strong to weak.
GRID = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 15))


@dataclass(frozen=True)
class LinearFit:
    """A linear head, and how exact it is."""

    weight: Tensor
    """``[C, F]``, float32."""
    bias: Tensor
    """``[C]``, float32; minus infinity for a class without samples, whose loss has its infimum there."""
    certificate: Certificate


def penalty_from_c(c: float, sample_weight_sum: float) -> float:
    """The penalty that scikit-learn's `C` stands for; its loss is a sum over samples, with the sum of weights given."""
    return 1 / (c * sample_weight_sum)


def c_from_penalty(penalty: float, sample_weight_sum: float) -> float:
    """scikit-learn's `C` for a penalty."""
    return 1 / (penalty * sample_weight_sum)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalties: Sequence[float] | None = None,
    *,
    class_weights: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    device: torch.device | str | None = None,
) -> list[LinearFit]:
    """Fit linear heads with an L2 penalty, one per penalty.

    Args:
        features: ``[N, F]``, float32 or float64, of any scale; they are not changed.
        labels: ``[N]``, int64.
        num_classes: C. Classes without samples (or with weight 0) get weights of 0 and a bias of minus infinity.
        penalties: positive, in any order; by default `default_penalties`.
        class_weights: ``[C]``, those of `featcache.probing.scoring.metrics`, for example; by default every sample counts alike.
        tolerance: a fit has converged when its gradient is at most this fraction of that of zero weights and it is
            proved to be at most this fraction of the objective above the minimum.
        max_iterations: per penalty.
        device: where to compute; by default that of `features`.

    Returns:
        The fits in the order of `penalties`. One that has not converged says so.

    Raises:
        RequestError: shapes, labels or penalties that do not fit, or features that are not finite.
    """
    problem = Problem.make(features, labels, num_classes, class_weights, device)
    space = make_space(problem.features)
    fitting = space.fitting(problem.loss.weights)
    chosen = (
        check_penalties(penalties) if penalties is not None else default_penalties(fitting.design.variances)
    )
    path = solve_path(fitting, problem.loss, chosen, tolerance=tolerance, max_iterations=max_iterations)
    weights, biases = space.head(path.coefficients)
    return [
        LinearFit(*problem.all_classes(weight, bias), certificate)
        for weight, bias, certificate in zip(weights, biases, path.certificates, strict=True)
    ]


@dataclass(frozen=True)
class Targets:
    """Labels of samples of positive weight, and the classes that occur among them, numbered anew."""

    loss: WeightedLoss
    classes: Tensor
    """The classes that occur, sorted."""
    num_classes: int

    @classmethod
    def balanced(cls, labels: Tensor, num_classes: int, device: torch.device) -> "Targets":
        """Prepare labels ``[N]`` that were checked; every class that occurs has the same weight."""
        labels = labels.to(device)
        weights = class_weights(labels, num_classes).double()[labels]
        classes, targets = torch.unique(labels, return_inverse=True)
        return cls(WeightedLoss(targets, weights / weights.sum()), classes, num_classes)

    def all_classes(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and biases of the classes that occur as those of all classes, float32."""
        full = weight.new_zeros((self.num_classes, weight.shape[1]), dtype=torch.float32)
        full[self.classes] = weight.float()
        full_bias = torch.full_like(full[:, 0], -torch.inf)
        full_bias[self.classes] = bias.float()
        return full, full_bias


@dataclass(frozen=True)
class Problem(Targets):
    """Checked samples of positive weight, and the classes that occur among them, numbered anew."""

    features: Tensor
    """``[N, F]``."""

    @classmethod
    def make(
        cls,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        class_weights: Tensor | None,
        device: torch.device | str | None = None,
    ) -> "Problem":
        """Check and prepare; samples without weight are left out.

        Raises:
            RequestError: shapes, labels or weights that do not fit, or features that are not finite.
        """
        place = solver_device(features.device if device is None else device)
        features, labels = features.to(place), labels.to(place)
        check_features(features)
        check_labels(labels, len(features), num_classes)
        per_class = _class_weights(class_weights, num_classes).to(place)
        weights = per_class[labels]
        if not bool((weights > 0).all()):
            kept = weights > 0
            features, labels, weights = features[kept], labels[kept], weights[kept]
            if not len(labels):
                raise RequestError("every sample has the class weight 0; nothing is left to fit")
        classes, targets = torch.unique(labels, return_inverse=True)
        return cls(WeightedLoss(targets, weights / weights.sum()), classes, num_classes, features)


def solver_device(device: torch.device | str) -> torch.device:
    """Where to compute instead of `device`: Apple's GPUs have no float64."""
    return torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)


def default_penalties(variances: Tensor) -> list[float]:
    """Return thirteen penalties from strong to weak, in proportion to the total variance of the features ``[R]``."""
    spread = float(variances.sum())
    return [factor * (spread if spread > 0 else 1.0) for factor in GRID]


def solve_path(
    fitting: Fitting,
    loss: WeightedLoss,
    penalties: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    start: Coefficients | None = None,
    on_solved: OnSolved | None = None,
    solved: SolvedParts | None = None,
) -> Path:
    """Solve for all penalties, from strong to weak: several side by side where that is faster, each from the last.

    Args:
        fitting: the samples.
        loss: their targets and weights.
        penalties: positive, in any order.
        tolerance: see `fit_logistic`.
        max_iterations: of each.
        start: a head (P = 1) to start from, of other samples perhaps; by default zero weights.
        on_solved: called as penalties are solved.
        solved: solutions of an earlier run, and the place for new ones.
    """
    design = fitting.design
    device, num_classes = design.mean.device, int(loss.targets.max()) + 1
    shape = (1, num_classes, len(design.mean) + 1)
    last = torch.zeros(shape, dtype=torch.float64, device=device)
    limit = Tolerance(tolerance * _gradient_norm_at_zero(design, loss, num_classes), tolerance)
    if start is not None:
        last = fitting.params(start)
    params = last.repeat(len(penalties), 1, 1)
    certificates: dict[int, Certificate] = {}
    for part in parts_of(penalties, num_classes, device):
        chosen = [penalties[index] for index in part]
        known = None if solved is None else solved.read(chosen)
        if known is None:
            values = torch.tensor(chosen, dtype=torch.float64, device=device)
            begin = last.expand(len(part), -1, -1)
            found, certified = _solve(design, loss, values, begin, limit, max_iterations)
            if solved is not None:
                solved.write(chosen, Path(fitting.coefficients(found), certified))
        else:
            found, certified = fitting.params(known.coefficients), known.certificates
        params[part] = found
        certificates.update(zip(part, certified, strict=True))
        last = found[-1:]
        if on_solved is not None:
            on_solved(len(part))
    return Path(fitting.coefficients(params), [certificates[index] for index in range(len(penalties))])


def parts_of(penalties: Sequence[float], num_classes: int, device: torch.device) -> Iterator[list[int]]:
    """Yield the positions of penalties that are solved side by side, from strong to weak."""
    order = sorted(range(len(penalties)), key=lambda index: -penalties[index])
    size = max(1, BATCH_COLUMNS.get(device.type, 64) // num_classes)
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _solve(
    design: Design,
    loss: WeightedLoss,
    penalties: Tensor,
    params: Tensor,
    limit: Tolerance,
    max_iterations: int,
) -> tuple[Tensor, list[Certificate]]:
    """Solve in float32 as far as that goes (if the problem is large), then in float64 what is not good enough yet."""
    iterations = torch.zeros_like(penalties, dtype=torch.int64)
    # The bias is still polished, which moves the gradient a little.
    inner = Tolerance(limit.gradient / 2, limit.gap / 2)
    exact = design.to(torch.float64)
    params = params.double().clone()
    rest = torch.arange(len(penalties), device=penalties.device)
    measured = torch.zeros(4, len(penalties), dtype=torch.float64, device=penalties.device)
    large = design.matrix.numel() > FLOAT64_VALUES
    # With a tiny penalty, the gap at the best bias can be far from that before: then on from there.
    for dtype in [torch.float32] * large + [torch.float64] * ROUNDS:
        left = max_iterations - int(iterations[rest].max())
        found, taken = minimise(design.to(dtype), loss, penalties[rest], params[rest], inner, left)
        found, figures = _certify(exact, loss, penalties[rest], found.double(), limit)
        params[rest], measured[:, rest] = found, figures
        iterations[rest] += taken
        rest = rest[(figures[3] == 0) & (iterations[rest] < max_iterations)]
        if not len(rest):
            break
    rows = zip(penalties.tolist(), measured.T.tolist(), iterations.tolist(), strict=True)
    return params, [
        Certificate(penalty, objective, norm, gap, count, bool(converged))
        for penalty, (objective, norm, gap, converged), count in rows
    ]


def _certify(
    design: Design, loss: WeightedLoss, penalties: Tensor, params: Tensor, limit: Tolerance
) -> tuple[Tensor, Tensor]:
    """Bring the bias to its best, and measure objective, gradient and gap in float64: ``[4, P]`` with `converged`."""
    # The mean over classes changes no probability; without it, weights are smaller.
    params = params - params.mean(1, keepdim=True)
    params, evaluation = polish_bias(design.logits(params), params, loss)
    body = params[..., :-1]
    gradient = design.adjoint(evaluation.residual)
    gradient[..., :-1] += penalties[:, None, None] * body
    objective = evaluation.loss + penalties * inner_product(body, body) / 2
    squared = inner_product(gradient[..., :-1], gradient[..., :-1])
    gap = squared / (2 * penalties)
    norm = (squared + inner_product(gradient[..., -1:], gradient[..., -1:])).sqrt()
    return params, torch.stack([objective, norm, gap, limit.met(norm, gap, objective).double()])


def _gradient_norm_at_zero(design: Design, loss: WeightedLoss, num_classes: int) -> float:
    # A scale, for which float32 is good enough.
    logits = torch.zeros(1, num_classes, len(loss.targets), device=design.mean.device)
    gradient = design.to(torch.float32).adjoint(loss.evaluate(logits).residual)
    return float(torch.linalg.vector_norm(gradient))


def check_penalties(penalties: Sequence[float]) -> list[float]:
    """Return `penalties`.

    Raises:
        RequestError: none, or one that is not a positive number.
    """
    if not penalties:
        raise RequestError("at least one penalty is needed")
    for penalty in penalties:
        if not (isfinite(penalty) and penalty > 0):
            raise RequestError(f"penalties must be positive numbers, not {penalty}")
    return [float(penalty) for penalty in penalties]


def check_features(features: Tensor) -> None:
    """Refuse what no solution follows from.

    Raises:
        RequestError: another shape or type than ``[N, F]`` of float32 or float64, or values that are not finite.
    """
    if features.ndim != 2 or not all(features.shape) or features.dtype not in (torch.float32, torch.float64):
        raise RequestError(
            f"features must be float32 or float64 of shape [N, F], not {features.dtype} of shape "
            f"{tuple(features.shape)}"
        )
    # A sum per row finds them without a mask of the size of the features.
    bad = (~features.sum(1, dtype=torch.float64).isfinite()).nonzero()
    if len(bad):
        raise RequestError(
            f"{len(bad)} samples hold values that are not finite, the first is row {int(bad[0])}"
        )


def check_labels(labels: Tensor, num_samples: int, num_classes: int) -> None:
    """Refuse labels that are not class indices.

    Raises:
        RequestError: another shape or type than ``[N]`` of int64, or an index out of range.
    """
    if labels.shape != (num_samples,) or labels.dtype != torch.int64:
        raise RequestError(
            f"{num_samples} samples need int64 labels of shape ({num_samples},), not {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0 or largest >= num_classes:
        raise RequestError(
            f"class indices count from 0 to {num_classes - 1}, but the labels run from {smallest} to {largest}"
        )


def _class_weights(class_weights: Tensor | None, num_classes: int) -> Tensor:
    if class_weights is None:
        return torch.ones(num_classes, dtype=torch.float64)
    if class_weights.shape != (num_classes,):
        raise RequestError(f"{num_classes} classes need as many weights, not {tuple(class_weights.shape)}")
    if not bool((class_weights.isfinite() & (class_weights >= 0)).all()):
        raise RequestError("class weights must be finite and not negative")
    return class_weights.double()
