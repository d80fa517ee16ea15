"""How a linear head is solved for under each kind of penalty: tuned on the first samples, then fitted to all.

Shapes: N samples, M held-out samples, T tokens, D width, F = T * D features, P penalties, C classes.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from featcache.probing.inputs.transforms import InputTransform
from featcache.probing.scoring.metrics import class_weights
from featcache.probing.solver.certificate import Certificate, OnSolved
from featcache.probing.solver.group_lasso import default_group_penalties, solve_group_path
from featcache.probing.solver.groups import GroupedDesign, make_groups
from featcache.probing.solver.logistic import Problem, default_penalties, solve_path
from featcache.probing.solver.spaces import Coefficients, Fitting, make_space


class Limits(TypedDict):
    """When a minimisation ends."""

    tolerance: float
    max_iterations: int


@dataclass(frozen=True)
class Data:
    """Samples through an input transform that was fitted to the first of them, with which to tune."""

    features: Tensor
    labels: Tensor
    num_train: int
    num_classes: int
    input_transform: InputTransform

    def problem(self, count: int) -> Problem:
        """The first samples, balanced."""
        labels = self.labels[:count]
        weights = class_weights(labels, self.num_classes)
        return Problem.make(self.features[:count], labels, self.num_classes, weights)


@dataclass(frozen=True)
class Tuned:
    """Heads for P penalties, fitted to the first samples."""

    certificates: list[Certificate]
    logits: Tensor
    """Of the classes that occur, on the other samples: ``[P, C', M]``."""
    classes: Tensor
    starts: list[Any]
    """What the final fit with each penalty may start from."""

    def outputs(self, index: int, num_classes: int) -> Tensor:
        """Logits of all classes with one penalty, ``[M, C]``."""
        logits = self.logits[index].T.float().cpu()
        full = torch.full((len(logits), num_classes), -torch.inf)
        full[:, self.classes.cpu()] = logits
        return full


@dataclass(frozen=True)
class Final:
    """The head fitted to all samples."""

    weight: Tensor
    bias: Tensor
    certificate: Certificate
    kept: tuple[int, ...]


class L2Solver:
    """Solves with an L2 penalty."""

    def __init__(self, groups: tuple[int, ...], data: Data) -> None:
        self._groups, self._data, self.input_transform = groups, data, data.input_transform
        self._space = make_space(data.features)
        self._fitted: tuple[Fitting, Problem] | None = None

    def default_penalties(self) -> list[float]:
        """A grid that suits the features."""
        self._fitted = self._fitting(self._data.num_train)
        return default_penalties(self._fitted[0])

    def _fitting(self, count: int) -> tuple[Fitting, Problem]:
        # No class loses its last sample to the held-out part, so the classes of both problems are the same.
        problem = self._data.problem(count)
        return self._space.fitting(problem.loss.weights), problem

    def tune(
        self,
        penalties: list[float],
        on_solved: OnSolved,
        limits: Limits,
        start: Coefficients | None = None,
    ) -> Tuned:
        """Fit to the first samples with every penalty, from `start`, which an earlier call gave."""
        fitting, part = self._fitted or self._fitting(self._data.num_train)
        self._fitted = None
        path = solve_path(fitting, part.loss, penalties, start=start, on_solved=on_solved, **limits)
        logits = self._space.logits(path.coefficients, self._data.num_train)
        starts = [path.coefficients.of(index) for index in range(len(penalties))]
        return Tuned(path.certificates, logits, part.classes, starts)

    def final(self, penalty: float, start: Coefficients | None, on_solved: OnSolved, limits: Limits) -> Final:
        """Fit to all samples."""
        fitting, whole = self._fitting(len(self._data.labels))
        final = solve_path(fitting, whole.loss, [penalty], start=start, on_solved=on_solved, **limits)
        weights, biases = self._space.head(final.coefficients)
        head = whole.all_classes(weights[0], biases[0])
        return Final(*head, final.certificates[0], self._groups)


class GroupLassoSolver:
    """Solves with a group lasso."""

    def __init__(self, groups: list[Tensor], data: Data) -> None:
        self._data, self.input_transform = data, data.input_transform
        self._columns = [group.to(data.features.device) for group in groups]
        self._fitted: tuple[GroupedDesign, Problem] | None = None

    def default_penalties(self) -> list[float]:
        """A grid that suits the features."""
        self._fitted = self._grouped(self._data.num_train)
        return default_group_penalties(self._fitted[0], self._fitted[1].loss)

    def _grouped(self, count: int) -> tuple[GroupedDesign, Problem]:
        problem = self._data.problem(count)
        return make_groups(problem.features, problem.loss.weights, self._columns), problem

    def tune(
        self,
        penalties: list[float],
        on_solved: OnSolved,
        limits: Limits,
        start: tuple[Tensor, Tensor] | None = None,
    ) -> Tuned:
        """Fit to the first samples with every penalty, from `start`, which an earlier call gave."""
        grouped, part = self._fitted or self._grouped(self._data.num_train)
        self._fitted = None
        params = None if start is None else grouped.params(*start)
        path = solve_group_path(grouped, part.loss, penalties, start=params, on_solved=on_solved, **limits)
        heads = [grouped.head(solution.params) for solution in path]
        held = self._data.features[self._data.num_train :]
        logits = [weight.float() @ held.T + bias.float().unsqueeze(1) for weight, bias in heads]
        certificates = [solution.certificate for solution in path]
        return Tuned(certificates, torch.stack(logits), part.classes, heads)

    def final(
        self, penalty: float, start: tuple[Tensor, Tensor] | None, on_solved: OnSolved, limits: Limits
    ) -> Final:
        """Fit to all samples."""
        grouped, whole = self._grouped(len(self._data.labels))
        params = None if start is None else grouped.params(*start)
        (final,) = solve_group_path(
            grouped, whole.loss, [penalty], start=params, on_solved=on_solved, **limits
        )
        return Final(*whole.all_classes(*grouped.head(final.params)), final.certificate, final.kept)
