"""How a linear head is solved for under each kind of penalty: tuned on the first samples, then fitted to all.

Shapes: N samples, M held-out samples, T tokens, D width, F = T * D features, P penalties, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from featcache.probing.inputs.features import Features, ResidentFeatures
from featcache.probing.inputs.transforms import InputTransform
from featcache.probing.solver.certificate import Certificate, OnSolved
from featcache.probing.solver.group_lasso import default_group_penalties, solve_group_path
from featcache.probing.solver.groups import GroupedDesign, make_groups
from featcache.probing.solver.logistic import Targets, check_features, default_penalties, solve_path
from featcache.probing.solver.solved_parts import SolvedParts
from featcache.probing.solver.spaces import Coefficients, Fitting, Space, make_space


class Limits(TypedDict):
    """When a minimisation ends."""

    tolerance: float
    max_iterations: int


@dataclass(frozen=True)
class Data:
    """Samples through an input transform that was fitted to the first of them, with which to tune."""

    features: Features
    labels: Tensor
    num_train: int
    num_classes: int
    input_transform: InputTransform

    def targets(self, count: int) -> Targets:
        """Return the labels of the first samples, balanced."""
        return Targets.balanced(self.labels[:count], self.num_classes, self.features.device)

    def held_out(self) -> Features:
        """Return the features of the other samples."""
        return self.features.select(slice(self.num_train, None))


@dataclass(frozen=True)
class Tuned:
    """Heads for P penalties, fitted to the first samples."""

    certificates: list[Certificate]
    starts: list[Any]
    """The heads one by one: the final fit with each penalty may start from them."""


@dataclass(frozen=True)
class Final:
    """The head fitted to all samples."""

    weight: Tensor
    bias: Tensor
    certificate: Certificate
    kept: tuple[int, ...]


class L2Solver:
    """Solves with an L2 penalty."""

    def __init__(
        self,
        groups: tuple[int, ...],
        data: Data,
        solved: SolvedParts | None = None,
        space: Space | None = None,
    ) -> None:
        """Prepare the fits; by default in the space that suits features in memory."""
        self._groups, self._data, self.input_transform = groups, data, data.input_transform
        self._space = make_space(resident(data.features)) if space is None else space
        self._solved = solved
        self._fitted: tuple[Fitting, Targets] | None = None

    def default_penalties(self) -> list[float]:
        """Return a grid that suits the features."""
        self._fitted = self._fitting(self._data.num_train)
        return default_penalties(self._fitted[0].design.variances)

    def _fitting(self, count: int) -> tuple[Fitting, Targets]:
        # No class loses its last sample to the held-out part, so the classes of both problems are the same.
        targets = self._data.targets(count)
        return self._space.fitting(targets.loss.weights), targets

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
        solved = None if self._solved is None else self._solved.of("tune")
        path = solve_path(
            fitting, part.loss, penalties, start=start, on_solved=on_solved, solved=solved, **limits
        )
        return Tuned(path.certificates, [path.coefficients.of(index) for index in range(len(penalties))])

    def held_out(self, starts: Sequence[Coefficients]) -> Iterator[Tensor]:
        """Yield logits ``[P, M, C]`` of heads on the other samples, float32, on the CPU."""
        logits = self._space.logits(Coefficients.joined(starts), self._data.num_train)
        classes = self._data.targets(self._data.num_train).classes
        yield all_class_outputs(logits.transpose(1, 2), classes, self._data.num_classes)

    def final(self, penalty: float, start: Coefficients | None, on_solved: OnSolved, limits: Limits) -> Final:
        """Fit to all samples."""
        fitting, whole = self._fitting(len(self._data.labels))
        solved = None if self._solved is None else self._solved.of("final")
        final = solve_path(
            fitting, whole.loss, [penalty], start=start, on_solved=on_solved, solved=solved, **limits
        )
        weights, biases = self._space.head(final.coefficients)
        head = whole.all_classes(weights[0], biases[0])
        return Final(*head, final.certificates[0], self._groups)


def resident(features: Features) -> Tensor:
    """Return features that are in memory, checked.

    Raises:
        RequestError: values that are not finite.
    """
    assert isinstance(features, ResidentFeatures)
    check_features(features.matrix)
    return features.matrix


def all_class_outputs(logits: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return logits ``[P, M, C']`` of the classes that occur as those of all classes, ``[P, M, C]`` float32 on the CPU."""
    full = torch.full((*logits.shape[:2], num_classes), -torch.inf)
    full[:, :, classes.cpu()] = logits.float().cpu()
    return full


class GroupLassoSolver:
    """Solves with a group lasso."""

    def __init__(self, groups: list[Tensor], data: Data) -> None:
        self._data, self.input_transform = data, data.input_transform
        self._matrix = resident(data.features)
        self._columns = [group.to(data.features.device) for group in groups]
        self._fitted: tuple[GroupedDesign, Targets] | None = None

    def default_penalties(self) -> list[float]:
        """A grid that suits the features."""
        self._fitted = self._grouped(self._data.num_train)
        return default_group_penalties(self._fitted[0], self._fitted[1].loss)

    def _grouped(self, count: int) -> tuple[GroupedDesign, Targets]:
        targets = self._data.targets(count)
        return make_groups(self._matrix[:count], targets.loss.weights, self._columns), targets

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
        return Tuned([solution.certificate for solution in path], heads)

    def held_out(self, starts: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Yield logits ``[P, M, C]`` of heads on the other samples, float32, on the CPU."""
        held = self._matrix[self._data.num_train :].float()
        logits = [held @ weight.float().T + bias.float() for weight, bias in starts]
        classes = self._data.targets(self._data.num_train).classes
        yield all_class_outputs(torch.stack(logits), classes, self._data.num_classes)

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
