"""A linear head solved exactly: choose the penalty on a held-out part of train, then solve on all of it.

The held-out part is that of the trained heads (`featcache.probe.training.sweep_plan`); there is no jitter here.

Shapes: N samples, T tokens, D width, F = T * D features, P penalties, C classes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import nan
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probe.inputs.split import Rows, stratified_folds, stratified_holdout
from featcache.probe.inputs.stages import PLAIN, InputStage, fit_stage
from featcache.probe.inputs.tokens import TokenSource, read_features
from featcache.probe.protocol import NO_FOLDS, Protocol
from featcache.probe.scoring.metrics import balanced_accuracy
from featcache.probe.solver.certificate import MAX_ITERATIONS, TOLERANCE, Certificate, OnSolved
from featcache.probe.solver.logistic import check_penalties, solver_device
from featcache.probe.solver.methods import Data, Final, GroupLassoSolver, L2Solver, Limits, Tuned
from featcache.store.errors import RequestError, UnknownNameError

PenaltyKind = Literal["l2", "group-lasso"]

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class ExactResult:
    """The outcome of a sweep over penalties."""

    penalty_kind: PenaltyKind
    penalty: float
    """The chosen one."""
    validation: dict[float, float]
    """Balanced accuracy on the held-out part for every penalty, from strong to weak."""
    tuning: dict[float, Certificate]
    """How exact the heads were from which the choice was made."""
    certificate: Certificate
    """How exact the final head is."""
    weight: Tensor
    """``[C, F]``, float32, on the concatenated tokens; fitted on all of train."""
    bias: Tensor
    """``[C]``, float32; minus infinity for classes without samples."""
    kept_groups: tuple[int, ...]
    """Groups that are left with weight; with an L2 penalty, all."""
    num_classes: int
    seconds: float
    stage: InputStage = PLAIN
    """What stored tokens go through before the head."""
    held_out: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """Logits ``[M, C]`` with the chosen penalty on the held-out samples, of the heads it was chosen from."""

    @property
    def notes(self) -> list[str]:
        """What the user must hear: solutions that are less exact than asked for, and a choice at the grid's end."""
        notes = []
        for what, certificate in (
            *((f"penalty {penalty:.3g}", found) for penalty, found in self.tuning.items()),
            (f"the final head, penalty {self.penalty:.3g},", self.certificate),
        ):
            if not certificate.converged:
                notes.append(
                    f"{what} did not converge in {certificate.iterations} iterations: the objective "
                    f"{certificate.objective:.6g} may be {certificate.suboptimality:.2g} above its minimum"
                )
        grid = list(self.validation)
        if len(grid) > 1 and self.penalty in (grid[0], grid[-1]):
            end = "largest" if self.penalty == grid[0] else "smallest"
            notes.append(f"the {end} penalty was chosen, {self.penalty:.3g}; a better one may lie beyond")
        return notes


def run_exact_sweep(
    tokens: TokenSource,
    labels: npt.NDArray[np.integer],
    *,
    protocol: Protocol,
    seed: int,
    penalties: Sequence[float] | None = None,
    penalty_kind: PenaltyKind = "l2",
    groups: Sequence[int] | None = None,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    on_progress: OnProgress | None = None,
) -> ExactResult:
    """Choose the best penalty and solve with it on the whole train split.

    The features exist once in float32 (with a group lasso, once more in the groups' bases).

    Args:
        tokens: the train split, N samples. The test split has no business here.
        labels: class indices, ``[N]``.
        protocol: how much is held out, and the input stage.
        seed: fixes the held-out part; nothing else is random.
        penalties: positive; by default a grid that suits the features.
        penalty_kind: ``l2`` or ``group-lasso``.
        groups: with a group lasso, the group of each token, ``[T]``, from 0 on: the layers, say; by default every token
            is a group of its own.
        num_classes: C; by default the largest label + 1.
        device: where to compute (Apple's GPUs have no float64: there it is the CPU).
        tolerance: see `featcache.probe.solver.logistic.fit_logistic`.
        max_iterations: per penalty.
        on_progress: called with the problems solved and to be solved.

    Raises:
        RequestError: labels, penalties or groups that do not fit, or a train split too small to hold anything out.
    """
    started = time.perf_counter()
    # Probabilities of sure predictions run into denormals. Threads inherit this, so entry points say it first, too.
    torch.set_flush_denormal(True)
    if penalty_kind not in get_args(PenaltyKind):
        raise UnknownNameError("penalty kind", penalty_kind, get_args(PenaltyKind))
    labels = np.asarray(labels)
    sweep = _Sweep(
        tokens=tokens,
        labels=torch.from_numpy(labels.astype(np.int64)),
        splits=_splits(labels, tokens.num_samples, protocol, seed),
        num_classes=int(labels.max()) + 1 if num_classes is None else num_classes,
        input=protocol.input,
        solver=partial(L2Solver, tuple(range(tokens.num_tokens)))
        if penalty_kind == "l2"
        else partial(GroupLassoSolver, _columns(tokens, groups)),
        penalties=None if penalties is None else check_penalties(penalties),
        device=solver_device(device),
        limits={"tolerance": tolerance, "max_iterations": max_iterations},
        on_progress=on_progress,
    )
    return replace(sweep.run(penalty_kind), seconds=time.perf_counter() - started)


def select_penalty(validation: dict[float, float]) -> float:
    """Return the penalty with the best score; a tie keeps the stronger one."""
    return max(validation, key=lambda penalty: (validation[penalty], penalty))


def _columns(tokens: TokenSource, groups: Sequence[int] | None) -> list[Tensor]:
    """The features of each group.

    Raises:
        RequestError: `groups` does not give every token a group, or skips a number.
    """
    of_token = torch.tensor(range(tokens.num_tokens) if groups is None else list(groups))
    if len(of_token) != tokens.num_tokens or not torch.equal(
        torch.unique(of_token), torch.arange(int(of_token.max()) + 1)
    ):
        raise RequestError(
            f"groups must number the group of each of the {tokens.num_tokens} tokens from 0 on, not {groups}"
        )
    of_column = of_token.repeat_interleave(tokens.width)
    return [(of_column == group).nonzero().squeeze(1) for group in range(int(of_token.max()) + 1)]


def _splits(
    labels: npt.NDArray[np.integer], num_samples: int, protocol: Protocol, seed: int
) -> list[tuple[Rows, Rows]]:
    folds = protocol.num_folds(len(labels))
    if folds == NO_FOLDS and labels.shape == (num_samples,):
        return []
    if folds > 1 and labels.shape == (num_samples,):
        return stratified_folds(labels, folds, seed)
    train_rows, held_rows = stratified_holdout(labels, protocol.validation_fraction, seed)
    if labels.shape != (num_samples,) or not len(held_rows):
        raise RequestError(
            f"{len(labels)} labels of {num_samples} samples leave {len(held_rows)} to hold out; both must agree, and "
            "some class needs several samples"
        )
    return [(train_rows, held_rows)]


@dataclass
class _Sweep:
    """The train split, and what is asked for."""

    tokens: TokenSource
    labels: Tensor
    splits: list[tuple[Rows, Rows]]
    num_classes: int
    input: str
    solver: Callable[[Data], L2Solver | GroupLassoSolver]
    penalties: list[float] | None
    device: torch.device
    limits: Limits
    on_progress: OnProgress | None

    def run(self, kind: PenaltyKind) -> ExactResult:
        """Tune on every split, then fit on everything."""
        if not self.splits:
            return self._without_choice(kind)
        tuned: list[Tuned] = []
        for train_rows, held_rows in self.splits:
            data = self._read(train_rows, held_rows)
            solver = self.solver(data)
            if not tuned:
                penalties = sorted(set(self.penalties or solver.default_penalties()), reverse=True)
                report = self._counter(len(penalties) * len(self.splits) + 1)
            tuned.append(solver.tune(penalties, report, self.limits))
        held = np.concatenate([held_rows for _, held_rows in self.splits])
        outputs = [
            torch.cat([one.outputs(index, self.num_classes) for one in tuned])
            for index in range(len(penalties))
        ]
        labels = self.labels[torch.from_numpy(held)]
        scores = [balanced_accuracy(one, labels, self.num_classes) for one in outputs]
        validation = dict(zip(penalties, scores, strict=True))
        chosen = select_penalty(validation)
        index = penalties.index(chosen)
        # Held-out samples were read along, so this is all of train, unless its statistics are others.
        start = tuned[0].starts[index]
        if len(self.splits) > 1 or data.stage.mean is not None:
            del data, solver
            everything = np.arange(len(self.labels))
            solver, start = self.solver(self._read(everything, everything[:0])), None
        final = solver.final(chosen, start, report, self.limits)
        worst = [
            max(
                (one.certificates[at] for one in tuned),
                key=lambda found: (not found.converged, found.suboptimality),
            )
            for at in range(len(penalties))
        ]
        tuning = dict(zip(penalties, worst, strict=True))
        return self._result(kind, chosen, validation, tuning, final, solver.stage, outputs[index])

    def _without_choice(self, kind: PenaltyKind) -> ExactResult:
        """Fit to everything with the penalty in the middle of the grid."""
        everything = np.arange(len(self.labels))
        solver = self.solver(self._read(everything, everything[:0]))
        penalties = sorted(self.penalties or solver.default_penalties(), reverse=True)
        chosen = penalties[len(penalties) // 2]
        final = solver.final(chosen, None, self._counter(1), self.limits)
        empty = torch.empty(0, self.num_classes)
        return self._result(kind, chosen, {chosen: nan}, {}, final, solver.stage, empty)

    def _result(
        self,
        kind: PenaltyKind,
        chosen: float,
        validation: dict[float, float],
        tuning: dict[float, Certificate],
        final: Final,
        stage: InputStage,
        held_out: Tensor,
    ) -> ExactResult:
        return ExactResult(
            kind,
            chosen,
            validation,
            tuning,
            final.certificate,
            final.weight,
            final.bias,
            final.kept,
            self.num_classes,
            seconds=0.0,
            stage=stage,
            held_out=held_out,
        )

    def _read(self, train_rows: Rows, held_rows: Rows) -> Data:
        stage = fit_stage(self.input, self.tokens, torch.from_numpy(train_rows))
        # The part to tune on comes first, so that it is a view.
        order = torch.from_numpy(np.concatenate([train_rows, held_rows]))
        features = read_features(self.tokens.with_stage(stage), order, self.device)
        return Data(features, self.labels[order], len(train_rows), self.num_classes, stage)

    def _counter(self, total: int) -> OnSolved:
        done = 0

        def count(solved: int) -> None:
            nonlocal done
            done += solved
            if self.on_progress is not None:
                self.on_progress(done, total)

        return count
