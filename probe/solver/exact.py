"""A linear head solved exactly: choose the penalty on a held-out part of train, then solve on all of it.

The held-out part is that of the trained heads (`featcache.probing.training.sweep_plan`); there is no jitter here.

Shapes: N samples, T tokens, D width, F = T * D features, P penalties, C classes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.devices.float32 import exact_float32
from featcache.probing.inputs.features import Features, ResidentFeatures, StreamedFeatures
from featcache.probing.inputs.grouped import Groups, grouped_folds, grouped_holdout
from featcache.probing.inputs.split import Rows, stratified_folds, stratified_holdout
from featcache.probing.inputs.tokens import TokenSource, read_features
from featcache.probing.inputs.transforms import PLAIN, InputTransform, fit_input_transform
from featcache.probing.inputs.view_rows import rows_of_views
from featcache.probing.protocols.protocol import NO_FOLDS, Protocol
from featcache.probing.scoring.held_out import make_held_out
from featcache.probing.scoring.soundness import DIVERGED, are_numbers
from featcache.probing.scoring.tasks import SingleLabel
from featcache.probing.solver.certificate import MAX_ITERATIONS, TOLERANCE, Certificate, OnSolved
from featcache.probing.solver.journal import PathJournal
from featcache.probing.solver.logistic import check_penalties, solver_device
from featcache.probing.solver.methods import Data, Final, GroupLassoSolver, L2Solver, Limits
from featcache.probing.solver.path_choice import Bounds, Tried, further_penalties, select_penalty
from featcache.probing.solver.solved_parts import SolvedParts
from featcache.probing.solver.spaces import prefers_samples
from featcache.probing.solver.streamed_solver import StreamedL2Solver, StreamedPlan
from featcache.store.errors import DivergedError, RequestError, UnknownNameError
from featcache.store.files import sha256_hex

PenaltyKind = Literal["l2", "group-lasso"]
Solver = L2Solver | GroupLassoSolver | StreamedL2Solver
KEEP_ALL = 2**62
"""Bytes of memory with which all held-out outputs are kept."""

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
    input_transform: InputTransform = PLAIN
    """What stored tokens go through before the head."""
    held_out: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    """Logits ``[M, C]`` with the chosen penalty on the held-out samples, of the heads it was chosen from."""
    extended: int = 0
    """Penalties beyond the default path, tried because its end was chosen."""

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
            how = f", after the path was extended by {self.extended}" if self.extended else ""
            notes.append(
                f"the {end} penalty was chosen, {self.penalty:.3g}{how}; a better one may lie beyond"
            )
        return notes


@exact_float32()
def run_exact_sweep(
    tokens: TokenSource,
    labels: npt.NDArray[np.integer],
    *,
    protocol: Protocol,
    seed: int,
    penalties: Sequence[float] | None = None,
    penalty_kind: PenaltyKind = "l2",
    groups: Sequence[int] | None = None,
    sample_groups: Groups | None = None,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    on_progress: OnProgress | None = None,
    plan: StreamedPlan | None = None,
    memory: int = 2**31,
    journal: PathJournal | None = None,
    on_pass: Callable[[float], None] | None = None,
) -> ExactResult:
    """Choose the best penalty and solve with it on the whole train split.

    The features exist once in float32 (with a group lasso, once more in the groups' bases), or block by block with a `plan`. The solution is
    the same within the tolerance.

    Args:
        tokens: the train split, N samples. The test split has no business here.
        labels: class indices, ``[N]``.
        protocol: how much is held out, and the input transform.
        seed: fixes the held-out part; nothing else is random.
        penalties: positive; by default a grid that suits the features and is extended while its end is chosen, within bounds.
        penalty_kind: ``l2`` or ``group-lasso``.
        groups: with a group lasso, the group of each token, ``[T]``, from 0 on: the layers, say; by default every token
            is a group of its own.
        sample_groups: group of every sample ``[N]``; samples of one group are held out together.
        num_classes: C; by default the largest label + 1.
        device: where to compute (Apple's GPUs have no float64: there it is the CPU).
        tolerance: see `featcache.probing.solver.logistic.fit_logistic`.
        max_iterations: per penalty.
        on_progress: called with the problems solved and to be solved.
        plan: how to divide the memory where the features do not fit into it; only for the L2 penalty.
        memory: bytes of which held-out outputs of all penalties may take a share, with a `plan`.
        journal: where solutions with an L2 penalty are kept, and found again after an interruption.
        on_pass: called with the seconds of every pass over features that are not in memory.

    Raises:
        RequestError: labels, penalties or groups that do not fit, or a train split too small to hold anything out.
        DivergedError: no penalty gives finite logits.
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
        splits=_splits(labels, tokens, protocol, seed, sample_groups),
        num_classes=int(labels.max()) + 1 if num_classes is None else num_classes,
        input=protocol.input,
        columns=None if penalty_kind == "l2" else _columns(tokens, groups),
        penalties=None if penalties is None else check_penalties(penalties),
        device=solver_device(device),
        limits={"tolerance": tolerance, "max_iterations": max_iterations},
        on_progress=on_progress,
        plan=plan,
        memory=memory,
        journal=journal,
        on_pass=on_pass,
    )
    return replace(sweep.run(penalty_kind), seconds=time.perf_counter() - started)


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
    labels: npt.NDArray[np.integer],
    tokens: TokenSource,
    protocol: Protocol,
    seed: int,
    sample_groups: Groups | None,
) -> list[tuple[Rows, Rows]]:
    """Divide the samples, each with all of its views."""
    num_views = tokens.num_views
    num_samples, labels = tokens.num_samples // num_views, labels[: len(labels) // num_views]
    pairs = _sample_splits(labels, num_samples, protocol, seed, sample_groups)
    return [
        (rows_of_views(train, num_samples, num_views), rows_of_views(held, num_samples, num_views))
        for train, held in pairs
    ]


def _sample_splits(
    labels: npt.NDArray[np.integer],
    num_samples: int,
    protocol: Protocol,
    seed: int,
    sample_groups: Groups | None,
) -> list[tuple[Rows, Rows]]:
    folds = protocol.num_folds(len(labels))
    if folds == NO_FOLDS and labels.shape == (num_samples,):
        return []
    if sample_groups is not None and labels.shape == (num_samples,):
        if folds > 1:
            return grouped_folds(labels, sample_groups, folds, seed)
        return [grouped_holdout(labels, sample_groups, protocol.validation_fraction, seed)]
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
    columns: list[Tensor] | None
    """Features of each group for a group lasso; None for an L2 penalty."""
    penalties: list[float] | None
    device: torch.device
    limits: Limits
    on_progress: OnProgress | None
    plan: StreamedPlan | None
    memory: int
    journal: PathJournal | None
    on_pass: Callable[[float], None] | None

    def run(self, kind: PenaltyKind) -> ExactResult:
        """Tune on every split, then fit on everything."""
        if not self.splits:
            return self._without_choice(kind)
        solver = self._solver_of(self.splits[0])
        asked = sorted(set(self.penalties or solver.default_penalties()), reverse=True)
        # Stronger penalties of a group lasso would leave no weight.
        bounds = None if self.penalties else Bounds.of(asked, stronger=self.columns is None)
        counter, usual = _Counter(self.on_progress), len(asked)
        tried: dict[float, Tried] = {}
        while asked:
            counter.total += len(asked) * len(self.splits)
            tried |= self._try(asked, solver, tried, counter)
            asked = [] if bounds is None else further_penalties(tried, bounds)
        tried = {penalty: tried[penalty] for penalty in sorted(tried, reverse=True)}
        chosen = select_penalty(tried)
        if tried[chosen].score == DIVERGED:
            raise DivergedError("logits are not finite under any penalty; use another input transform")
        held_out = tried[chosen].outputs
        if held_out is None:  # too many to keep for all penalties
            held_out = self._held_out(solver, tried[chosen])
        start = tried[chosen].starts[0]
        # Held-out samples were read along, so this is all of train, unless its statistics are others.
        if len(self.splits) > 1 or solver.input_transform.mean is not None:
            del solver
            everything = np.arange(len(self.labels))
            solver, start = self._solver_of((everything, everything[:0])), None
        final = solver.final(chosen, start, counter, self.limits)
        validation = {penalty: one.score for penalty, one in tried.items()}
        tuning = {penalty: one.certificate for penalty, one in tried.items()}
        result = self._result(kind, chosen, validation, tuning, final, solver.input_transform, held_out)
        return replace(result, extended=len(tried) - usual)

    def _try(
        self,
        penalties: list[float],
        first: Solver,
        known: dict[float, Tried],
        on_solved: OnSolved,
    ) -> dict[float, Tried]:
        """Fit with every penalty on every split; `first` is the solver of the first split, `known` holds earlier results."""
        weakest = min(known, default=inf)
        start = known[weakest].starts[0] if known and max(penalties) < weakest else None
        held = np.concatenate([held_rows for _, held_rows in self.splits])
        task = SingleLabel(self.num_classes)
        # In memory, all outputs were counted; see `featcache.probing.training.full_batch`.
        memory = KEEP_ALL if self.plan is None else self.memory
        outputs = make_held_out(task, len(penalties), self.labels[torch.from_numpy(held)], memory)
        tuned = []
        for number, split in enumerate(self.splits):
            solver = self._solver_of(split) if number else first
            tuned.append(solver.tune(penalties, on_solved, self.limits, start if number == 0 else None))
            for batch in solver.held_out(tuned[-1].starts):
                outputs.add(batch)
        ranks = outputs.ranks()
        return {
            penalty: Tried(
                outputs.outputs(index),
                *ranks[index],
                max(
                    (one.certificates[index] for one in tuned),
                    key=lambda found: (not found.converged, found.suboptimality),
                ),
                [one.starts[index] for one in tuned],
            )
            for index, penalty in enumerate(penalties)
        }

    def _held_out(self, first: Solver, tried: Tried) -> Tensor:
        """Compute the held-out logits ``[R, C]`` of one penalty again; `first` is the solver of the first split."""
        parts = []
        for number, split in enumerate(self.splits):
            solver = self._solver_of(split) if number else first
            parts += [batch[0] for batch in solver.held_out([tried.starts[number]])]
        return torch.cat(parts)

    def _without_choice(self, kind: PenaltyKind) -> ExactResult:
        """Fit to everything with the penalty in the middle of the grid."""
        everything = np.arange(len(self.labels))
        solver = self._solver_of((everything, everything[:0]))
        penalties = sorted(self.penalties or solver.default_penalties(), reverse=True)
        chosen = penalties[len(penalties) // 2]
        final = solver.final(chosen, None, _Counter(self.on_progress), self.limits)
        empty = torch.empty(0, self.num_classes)
        return self._result(kind, chosen, {chosen: nan}, {}, final, solver.input_transform, empty)

    def _result(
        self,
        kind: PenaltyKind,
        chosen: float,
        validation: dict[float, float],
        tuning: dict[float, Certificate],
        final: Final,
        transform: InputTransform,
        held_out: Tensor,
    ) -> ExactResult:
        if not are_numbers((final.weight, final.bias)):
            raise DivergedError("the solution on all of train is not finite; use another input transform")
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
            input_transform=transform,
            held_out=held_out,
        )

    def _solver_of(self, split: tuple[Rows, Rows]) -> Solver:
        """Read a split through an input transform fitted to its training part."""
        train_rows, held_rows = split
        transform = fit_input_transform(self.input, self.tokens, torch.from_numpy(train_rows))
        # The part to tune on comes first, so that it is a view.
        order = torch.from_numpy(np.concatenate([train_rows, held_rows]))
        tokens = self.tokens.with_transform(transform)
        features: Features
        if self.plan is None:
            features = ResidentFeatures(read_features(tokens, order, self.device))
        else:
            features = StreamedFeatures(tokens, order, self.device, self.plan.block_rows)
        data = Data(features, self.labels[order], len(train_rows), self.num_classes, transform)
        if self.columns is not None:
            return GroupLassoSolver(self.columns, data)
        groups, solved = tuple(range(self.tokens.num_tokens)), self._solved(split, features)
        if self.plan is None:
            return L2Solver(groups, data, solved)
        space = self.plan.space_for(data)
        if space is None:
            return StreamedL2Solver(groups, data, solved, self.plan, self.on_pass)
        return L2Solver(groups, data, solved, space)

    def _solved(self, split: tuple[Rows, Rows], features: Features) -> SolvedParts | None:
        if self.journal is None:
            return None
        # Weights of features and of samples are told apart by their number.
        samples, width = features.num_samples, features.num_features
        problem = {
            "rows": sha256_hex(np.concatenate([*split, [len(split[0])]]).tobytes()),
            "classes": self.num_classes,
            "dimensions": samples if prefers_samples(samples, width) else width,
            "limits": dict(self.limits),
        }
        return SolvedParts(self.journal, problem)


class _Counter:
    """Counts solutions; the last one is the final fit."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.total, self._done, self._on_progress = 1, 0, on_progress

    def __call__(self, solved: int) -> None:
        """Count one solution, and report the progress."""
        self._done += solved
        if self._on_progress is not None:
            self._on_progress(self._done, self.total)
