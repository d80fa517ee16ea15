"""How a linear head with an L2 penalty is solved for where its features do not fit into memory: see `featcache.probing.solver.methods`.

Shapes: N samples, M held-out samples, F features, P penalties, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.probing.solver.certificate import OnSolved
from featcache.probing.solver.lbfgs import HISTORY
from featcache.probing.solver.logistic import Targets, default_penalties
from featcache.probing.solver.methods import Data, Final, Limits, Tuned, all_class_outputs
from featcache.probing.solver.solved_parts import SolvedParts
from featcache.probing.solver.spaces import MAX_EIGEN, Coefficients, GramSpace, prefers_samples
from featcache.probing.solver.streamed_path import StreamedFitting, StreamedLimits, solve_streamed_path


@dataclass(frozen=True)
class StreamedPlan:
    """How a solver divides its memory."""

    block_rows: int
    """Rows of a block of features."""
    history: int = HISTORY
    """Steps that L-BFGS remembers."""
    max_eigen: int = MAX_EIGEN
    """With more features than that, the preconditioner is diagonal."""
    gram: bool = True
    """Whether the Gram matrix of fewer samples than features has room."""

    def space_for(self, data: Data) -> GramSpace | None:
        """Return the space of the samples where these are fewer than the features; None for the features themselves."""
        features = data.features
        if not self.gram or not prefers_samples(features.num_samples, features.num_features):
            return None
        return GramSpace(features)


class StreamedL2Solver:
    """Solves with an L2 penalty, in the features."""

    def __init__(
        self,
        groups: tuple[int, ...],
        data: Data,
        solved: SolvedParts | None,
        plan: StreamedPlan,
        on_pass: Callable[[float], None] | None = None,
    ) -> None:
        self._groups, self._data, self.input_transform = groups, data, data.input_transform
        self._solved, self._plan, self._on_pass = solved, plan, on_pass
        self._fitted: StreamedFitting | None = None

    def default_penalties(self) -> list[float]:
        """Return a grid that suits the features."""
        self._fitted = self._fitting(self._targets)
        return default_penalties(self._fitted.preconditioner.variances)

    @property
    def _targets(self) -> Targets:
        return self._data.targets(self._data.num_train)

    def _fitting(self, targets: Targets) -> StreamedFitting:
        features = self._data.features.select(slice(0, len(targets.loss.targets)))
        return StreamedFitting.of(features, targets, self._plan.max_eigen, self._on_pass)

    def _limits(self, limits: Limits) -> StreamedLimits:
        return StreamedLimits(**limits, history=self._plan.history)

    def tune(
        self,
        penalties: list[float],
        on_solved: OnSolved,
        limits: Limits,
        start: Coefficients | None = None,
    ) -> Tuned:
        """Fit to the first samples with every penalty, from `start`, which an earlier call gave."""
        # Kept for penalties that extend the path: a pass over the features would be needed again.
        self._fitted = self._fitted or self._fitting(self._targets)
        path = solve_streamed_path(
            self._fitted,
            penalties,
            self._limits(limits),
            start=start,
            on_solved=on_solved,
            solved=None if self._solved is None else self._solved.of("tune"),
        )
        return Tuned(path.certificates, [path.coefficients.of(index) for index in range(len(penalties))])

    def held_out(self, starts: Sequence[Coefficients]) -> Iterator[Tensor]:
        """Yield logits ``[P, B, C]`` of heads on the other samples, block by block, float32, on the CPU."""
        heads, classes = Coefficients.joined(starts), self._targets.classes
        weight, bias = heads.body.flatten(0, 1).float(), heads.bias.flatten().float()
        for _, block in self._data.held_out().blocks():
            logits = torch.addmm(bias, block.float(), weight.T).view(len(block), len(starts), -1)
            yield all_class_outputs(logits.transpose(0, 1), classes, self._data.num_classes)

    def final(self, penalty: float, start: Coefficients | None, on_solved: OnSolved, limits: Limits) -> Final:
        """Fit to all samples."""
        self._fitted = None
        whole = self._data.targets(len(self._data.labels))
        path = solve_streamed_path(
            self._fitting(whole),
            [penalty],
            self._limits(limits),
            start=start,
            on_solved=on_solved,
            solved=None if self._solved is None else self._solved.of("final"),
        )
        head = whole.all_classes(path.coefficients.body[0], path.coefficients.bias[0])
        return Final(*head, path.certificates[0], self._groups)
