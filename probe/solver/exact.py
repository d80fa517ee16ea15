"""A linear head solved exactly: choose the penalty on a held-out part of train, then solve on all of it.

The held-out part is that of the trained heads (`featcache.probe.sweep`); there is no jitter here.

Shapes: N samples, T tokens, D width, F = T * D features, P penalties, C classes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probe.metrics import balanced_accuracy, class_weights
from featcache.probe.protocol import Protocol
from featcache.probe.solver.certificate import MAX_ITERATIONS, TOLERANCE, Certificate, OnSolved
from featcache.probe.solver.group_lasso import default_group_penalties, solve_group_path
from featcache.probe.solver.groups import make_groups
from featcache.probe.solver.logistic import (
    Problem,
    check_penalties,
    default_penalties,
    solve_path,
    solver_device,
)
from featcache.probe.solver.spaces import make_space
from featcache.probe.split import stratified_holdout
from featcache.probe.tokens import TokenSource
from featcache.store.errors import RequestError, UnknownNameError

PenaltyKind = Literal["l2", "group-lasso"]
# Samples whose tokens are read at once.
READ_ROWS = 1024

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
        protocol: how much is held out.
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
    train_rows, held_rows = stratified_holdout(labels, protocol.validation_fraction, seed)
    if labels.shape != (tokens.num_samples,) or not len(held_rows):
        raise RequestError(
            f"{len(labels)} labels of {tokens.num_samples} samples leave {len(held_rows)} to hold out; both must agree, and "
            "some class needs several samples"
        )
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    # The part to tune on comes first, so that it is a view.
    order = torch.from_numpy(np.concatenate([train_rows, held_rows]))
    sweep = _Sweep(
        features=read_features(tokens, order, solver_device(device)),
        labels=torch.from_numpy(labels.astype(np.int64))[order],
        num_train=len(train_rows),
        num_classes=classes,
        penalties=None if penalties is None else check_penalties(penalties),
        tolerance=tolerance,
        max_iterations=max_iterations,
        on_progress=on_progress,
    )
    if penalty_kind == "l2":
        result = sweep.l2(tuple(range(tokens.num_tokens)))
    else:
        result = sweep.group_lasso(_columns(tokens, groups))
    return replace(result, seconds=time.perf_counter() - started)


def read_features(tokens: TokenSource, rows: Tensor, device: torch.device | str) -> Tensor:
    """Concatenate the tokens of `rows` ``[M]``: ``[M, T * D]``, float32, on `device`."""
    features = torch.empty(len(rows), tokens.num_tokens * tokens.width, device=device)
    for start in range(0, len(rows), READ_ROWS):
        part = rows[start : start + READ_ROWS]
        features[start : start + len(part)] = tokens.batch(part).flatten(1)
    return features


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


@dataclass
class _Sweep:
    """The features of train, the part to tune on first, and what is asked for."""

    features: Tensor
    labels: Tensor
    num_train: int
    num_classes: int
    penalties: list[float] | None
    tolerance: float
    max_iterations: int
    on_progress: OnProgress | None

    def problem(self, count: int) -> Problem:
        """The first samples, balanced."""
        labels = self.labels[:count]
        weights = class_weights(labels, self.num_classes)
        return Problem.make(self.features[:count], labels, self.num_classes, weights)

    def l2(self, groups: tuple[int, ...]) -> ExactResult:
        """Sweep over L2 penalties."""
        # No class loses its last sample to the held-out part, so the classes of both problems are the same.
        part, whole = self.problem(self.num_train), self.problem(len(self.labels))
        space = make_space(self.features)
        fitting = space.fitting(part.loss.weights)
        penalties = self._grid(self.penalties or default_penalties(fitting))
        report = self._counter(len(penalties))
        solve = partial(
            solve_path, tolerance=self.tolerance, max_iterations=self.max_iterations, on_solved=report
        )
        path = solve(fitting, part.loss, penalties)
        logits = space.logits(path.coefficients, self.num_train)
        validation = self._validate(penalties, logits, part)
        chosen = select_penalty(validation)
        start = path.coefficients.of(penalties.index(chosen))
        del fitting
        fitting = space.fitting(whole.loss.weights)
        final = solve(fitting, whole.loss, [chosen], start=start)
        weights, biases = space.head(final.coefficients)
        tuning = dict(zip(penalties, path.certificates, strict=True))
        weight, bias = whole.all_classes(weights[0], biases[0])
        return self._result("l2", chosen, validation, tuning, final.certificates[0], weight, bias, groups)

    def group_lasso(self, groups: list[Tensor]) -> ExactResult:
        """Sweep over group lasso penalties."""
        part, whole = self.problem(self.num_train), self.problem(len(self.labels))
        columns = [group.to(self.features.device) for group in groups]
        grouped = make_groups(part.features, part.loss.weights, columns)
        penalties = self._grid(self.penalties or default_group_penalties(grouped, part.loss))
        report = self._counter(len(penalties))
        solve = partial(
            solve_group_path, tolerance=self.tolerance, max_iterations=self.max_iterations, on_solved=report
        )
        path = solve(grouped, part.loss, penalties)
        heads = [grouped.head(solution.params) for solution in path]
        held = self.features[self.num_train :]
        logits = [weight.float() @ held.T + bias.float().unsqueeze(1) for weight, bias in heads]
        validation = self._validate(penalties, torch.stack(logits), part)
        chosen = select_penalty(validation)
        head = heads[penalties.index(chosen)]
        del grouped
        grouped = make_groups(whole.features, whole.loss.weights, columns)
        (final,) = solve(grouped, whole.loss, [chosen], start=grouped.params(*head))
        weight, bias = whole.all_classes(*grouped.head(final.params))
        tuning = {penalty: found.certificate for penalty, found in zip(penalties, path, strict=True)}
        return self._result(
            "group-lasso", chosen, validation, tuning, final.certificate, weight, bias, final.kept
        )

    def _grid(self, penalties: list[float]) -> list[float]:
        return sorted(set(penalties), reverse=True)

    def _validate(self, penalties: list[float], logits: Tensor, part: Problem) -> dict[float, float]:
        """Score held-out logits ``[P, C', M]`` of the classes that occur."""
        labels = self.labels[self.num_train :].to(logits.device)
        predicted = part.classes[logits.argmax(1)]
        scores = [balanced_accuracy(row, labels, self.num_classes) for row in predicted]
        return dict(zip(penalties, scores, strict=True))

    def _result(
        self,
        kind: PenaltyKind,
        chosen: float,
        validation: dict[float, float],
        tuning: dict[float, Certificate],
        certificate: Certificate,
        weight: Tensor,
        bias: Tensor,
        kept: tuple[int, ...],
    ) -> ExactResult:
        return ExactResult(
            kind, chosen, validation, tuning, certificate, weight, bias, kept, self.num_classes, seconds=0.0
        )

    def _counter(self, num_penalties: int) -> OnSolved:
        done = 0

        def count(solved: int) -> None:
            nonlocal done
            done += solved
            if self.on_progress is not None:
                self.on_progress(done, num_penalties + 1)

        return count
