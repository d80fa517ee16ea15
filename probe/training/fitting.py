"""One head, chosen and fitted on train: by training the members of a protocol, by formula, by the exact solver, or the best of these."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from featcache.probe.heads import get_head
from featcache.probe.heads.base import Head
from featcache.probe.heads.blend import BlendHead
from featcache.probe.inputs.data import SplitData
from featcache.probe.protocol import NO_FOLDS, Member, Protocol
from featcache.probe.request import (
    ADAMW,
    CHOICE,
    CLOSED,
    EXACT,
    GROUP_LASSO,
    Job,
    ProbeRequest,
    make_job,
)
from featcache.probe.results import Chosen
from featcache.probe.scoring.kinds import MULTI_LABEL, REGRESSION, REGRESSION_LOSSES, SINGLE_LABEL
from featcache.probe.scoring.tasks import LEAST_REGRESSION, as_tensor, make_task
from featcache.probe.solver.exact import PenaltyKind, run_exact_sweep
from featcache.probe.training.auto import CANDIDATES, Candidate, Choice, choose
from featcache.probe.training.closed import ends_of_grid, run_closed_sweep
from featcache.probe.training.estimate import estimate_sweep
from featcache.probe.training.fitted import Fitted, Work, count_parameters, record_sweep
from featcache.probe.training.process import threads
from featcache.probe.training.sweep import (
    SweepOptions,
    SweepResult,
    Tuning,
    describe_diverged,
    finish,
    group_size,
    held_out_outputs,
    run_sweep,
    suitable_threads,
    tune,
)
from featcache.probe.training.sweep_plan import Sweep, make_splits, plan_sweep
from featcache.probe.training.unfinished import Unfinished
from featcache.probe.training.whole import Size, check_whole
from featcache.store.errors import DivergedError, RequestError
from featcache.store.progress import Reporter, Silent
from featcache.store.text import rough_duration

# A group of members is cut so that about this many seconds of work are the most that an interruption loses.
GROUP_SECONDS = 300.0

Outcome = TypeVar("Outcome", SweepResult, Tuning)


@dataclass(frozen=True)
class Fitter:
    """Everything that the fits of a probe share."""

    protocol: Protocol
    device: torch.device
    precision: str
    memory: int
    """Bytes for the members that train together."""
    out: Path | None = None
    """Folder of the results, where unfinished sweeps are kept; None keeps none."""
    force: bool = False
    reporter: Reporter = field(default_factory=Silent)
    target_kind: str | None = None
    regression_loss: str = REGRESSION_LOSSES[0]
    limit: int | None = None
    """Bytes that the user gives to the run; None for what is free."""

    def fit(self, job: Job, seed: int, run: str, title: str, train: SplitData) -> Fitted:
        """Choose and fit a head.

        Args:
            job: head and tokens.
            seed: fixes everything that is drawn.
            run: id of the run, under which unfinished work is kept.
            title: what the user is shown.
            train: the train split.

        Raises:
            RequestError: the train split is too small, or its targets are not for this head.
            DivergedError: nothing that was fitted is finite.
        """
        task, targets = make_task(train.labels, self.target_kind, loss=self.regression_loss)
        work = Work(job, seed, run, title, train, task, targets)
        if job.solver != CHOICE:
            job.head.check_kind(task.kind)
        fitter = self
        if task.kind == SINGLE_LABEL and len(targets) and int(np.bincount(targets).max()) < 2:
            self.reporter.message(
                f"note: {title}: one sample of each class leaves none to choose with; the settings are the middle ones of the sweep"
            )
            fitter = replace(self, protocol=self.protocol.without_choice())
        elif task.kind == REGRESSION and len(targets) < LEAST_REGRESSION:
            self.reporter.message(
                f"note: {title}: {len(targets)} samples leave none to choose with; the settings are the middle ones of the sweep"
            )
            fitter = replace(self, protocol=self.protocol.without_choice())
        elif task.kind == MULTI_LABEL and self._is_indivisible(work):
            self.reporter.message(
                f"note: {title}: too few samples of each label leave none to choose with; the settings are the middle ones of the sweep"
            )
            fitter = replace(self, protocol=self.protocol.without_choice())
        try:
            return fitter._fit(work)
        except DivergedError as error:
            raise DivergedError(f"{title}: {error}") from error

    def _is_indivisible(self, work: Work) -> bool:
        """Whether no sample can be held out; folds and groups have their own errors."""
        number = len(work.targets)
        if number < 2 or self.protocol.num_folds(number) != 1 or work.train.groups is not None:
            return False
        return not len(work.task.holdout(work.targets, self.protocol.validation_fraction, work.seed)[1])

    def _fit(self, work: Work) -> Fitted:
        how = {EXACT: self._solve, CLOSED: self._compute, CHOICE: self._choose, ADAMW: self._train}
        return how[work.job.solver](work)

    def _train(self, work: Work) -> Fitted:
        sweep = self._plan(work)
        with threads(suitable_threads(sweep)):
            result, _ = self._sweep(work, sweep, self._unfinished(work), run_sweep)
        self._tell_diverged(work, result.diverged)
        return self._trained(work, result.member, result.validation, result.head, result.seconds)

    def _tell_diverged(self, work: Work, members: Sequence[Member]) -> None:
        if members:
            self.reporter.message(f"note: {work.title}: {describe_diverged(members)}")

    def _unfinished(self, work: Work) -> Unfinished | None:
        return None if self.out is None else Unfinished(self.out, work.run)

    def _plan(self, work: Work) -> Sweep:
        return plan_sweep(
            work.job.build,
            work.train.tokens,
            work.targets,
            protocol=self.protocol,
            has_dropout=work.job.head.has_dropout,
            seed=work.seed,
            task=work.task,
            sample_groups=work.train.groups,
        )

    def _trained(
        self, work: Work, member: Member, validation: Mapping[Member, float], head: Head, seconds: float
    ) -> Fitted:
        return Fitted(
            head,
            work.task,
            count_parameters(head),
            validation[member],
            Chosen(member.learning_rate, member.weight_decay, member.dropout),
            seconds,
            work.job.head.name,
            self.protocol.input,
            record_sweep(work.task, [(vars(one), score) for one, score in validation.items()], vars(member)),
        )

    def _sweep(
        self,
        work: Work,
        sweep: Sweep,
        unfinished: Unfinished | None,
        run: Callable[[Sweep, SweepOptions], Outcome],
    ) -> tuple[Outcome, SweepOptions]:
        """Run a sweep, or its choice alone, from where an earlier run was interrupted; also what it ran with."""
        finished = [] if self.force or unfinished is None else unfinished.read()
        options = SweepOptions(
            self.device,
            self.precision,
            memory=self.memory,
            finished=finished,
            on_group=None if unfinished is None else unfinished.write,
        )
        options, number = self._announce(work, sweep, options)
        try:
            with self.reporter.progress(work.title, "updates") as update:
                result = run(sweep, replace(options, on_progress=update))
        except KeyboardInterrupt:
            if unfinished is not None:
                kept = sum(map(len, unfinished.read()))
                self.reporter.message(f"{kept} of {number} members are kept; the same command goes on")
            raise
        except DivergedError:
            if unfinished is not None:
                unfinished.remove()
            raise
        if unfinished is not None:
            unfinished.remove()
        return result, replace(options, finished=(), on_group=None)

    def _announce(self, work: Work, sweep: Sweep, options: SweepOptions) -> tuple[SweepOptions, int]:
        """Say how long a sweep will take, and cut groups that would take too long; also the trainings of the sweep."""
        estimate = estimate_sweep(sweep, options)
        if estimate.seconds > 2 * GROUP_SECONDS:
            most = estimate.group_of(GROUP_SECONDS, sweep.tuning.num_steps)
            options = replace(options, group_size=min(most, group_size(sweep, options)))
        number = sum(one.num_members for one in sweep.rounds)
        finished = sum(map(len, options.finished))
        rounds = f" in {len(sweep.rounds)} rounds" if len(sweep.rounds) > 1 else ""
        if self.protocol.halving > 1 and not rounds:
            rounds = " (too few members or updates to halve)"
        folds = f" x {len(sweep.splits)} folds" if len(sweep.splits) > 1 else ""
        self.reporter.message(
            f"{work.title}: {number} members{rounds}{folds} x {sweep.tuning.num_steps:,} updates in batches of "
            f"{sweep.tuning.batch_size:,}, {self.precision}{', streamed' if work.train.streamed else ''}"
            + (f", {finished} members from an interrupted run" if finished else "")
            + f"; about {rough_duration(estimate.seconds)}"
        )
        return options, number

    def _compute(self, work: Work) -> Fitted:
        return self._computed(work)[0]

    def _computed(self, work: Work) -> tuple[Fitted, Tensor]:
        """Fit by formula; also the outputs on held-out samples."""
        with self.reporter.progress(work.title, "fits") as update:
            result = run_closed_sweep(
                work.job.head,
                work.train.tokens,
                work.targets,
                protocol=self.protocol,
                seed=work.seed,
                task=work.task,
                sample_groups=work.train.groups,
                device=self.device,
                memory=self.memory,
                on_progress=update,
            )
        # A head's own factor, which makes logits of its outputs, is not part of what was compared.
        chosen = {name: value for name, value in result.settings.items() if name != "factor"}
        for note in ends_of_grid(result.validation, chosen):
            self.reporter.message(f"note: {work.title}: {note}")
        fitted = Fitted(
            result.head,
            work.task,
            count_parameters(result.head),
            next(score for settings, score in result.validation if dict(settings) == chosen),
            Chosen(settings=dict(result.settings)),
            result.seconds,
            work.job.head.name,
            self.protocol.input,
            record_sweep(work.task, result.validation, chosen),
        )
        return fitted, result.held_out

    def _solve(self, work: Work) -> Fitted:
        return self._solved(work)[0]

    def _solved(self, work: Work) -> tuple[Fitted, Tensor]:
        """Solve exactly; also the outputs on held-out samples."""
        job = work.job
        get_head("logreg").check_kind(work.task.kind)
        layers = [layer for layer, _ in job.selection.places()]
        names = list(dict.fromkeys(layers))
        with self.reporter.progress(work.title, "solutions") as update:
            result = run_exact_sweep(
                work.train.tokens,
                work.targets,
                protocol=self.protocol,
                seed=work.seed,
                num_classes=work.task.num_outputs,
                penalty_kind=cast(PenaltyKind, job.penalty),
                groups=[names.index(layer) for layer in layers],
                sample_groups=work.train.groups,
                device=self.device,
                on_progress=update,
            )
        for note in result.notes:
            self.reporter.message(f"note: {work.title}: {note}")
        size = (work.train.tokens.num_tokens, work.train.tokens.width, result.num_classes)
        with torch.device("meta"):  # nothing is drawn
            head = job.head.build(*size)
        head.load_member({"classifier.weight": result.weight, "classifier.bias": result.bias})
        head.stage = result.stage
        kept = [names[group] for group in result.kept_groups] if job.penalty == GROUP_LASSO else None
        fitted = Fitted(
            head.eval(),
            work.task,
            count_parameters(head),
            result.validation[result.penalty],
            Chosen(penalty=result.penalty, converged=result.certificate.converged, kept_layers=kept),
            result.seconds,
            job.head.name,
            self.protocol.input,
            record_sweep(
                work.task,
                [({"penalty": penalty}, score) for penalty, score in result.validation.items()],
                {"penalty": result.penalty},
            ),
        )
        return fitted, result.held_out

    def _choose(self, work: Work) -> Fitted:
        """Let heads and input stages compete."""
        started, candidates = time.perf_counter(), list[Candidate]()
        possible = self._possible(work)
        if self.protocol.folds == NO_FOLDS:
            job, stage = possible[0]
            return replace(self, protocol=replace(self.protocol, input=stage))._fit(replace(work, job=job))
        for job, stage in possible:
            fitter = replace(self, protocol=replace(self.protocol, input=stage))
            title = f"{work.title}: {job.head.name} on {stage}"
            try:
                candidates.append(fitter._candidate(replace(work, job=job, title=title)))
            except DivergedError as error:
                self.reporter.message(f"note: {title} is left out: {error}")
                continue
            self.reporter.message(
                f"{title}: {work.task.metric} {candidates[-1].score:.4f} on held-out samples"
            )
        splits = make_splits(work.targets, work.task, self.protocol, work.seed, work.train.groups)
        targets = as_tensor(work.targets)[torch.cat([held for _, held in splits])]
        listed = tuple({"head": one.head, "input": one.input, "score": one.score} for one in candidates)
        choice, parts = self._finish_best(work, candidates, targets)
        if len(parts) == 1:
            return replace(parts[0], sweep=None, candidates=listed, seconds=time.perf_counter() - started)
        head = BlendHead.of([part.name for part in parts], [part.head for part in parts], work.task.kind)
        return Fitted(
            head,
            work.task,
            sum(part.parameters for part in parts),
            choice.score,
            Chosen(),
            time.perf_counter() - started,
            "blend",
            " + ".join(f"{part.name} on {part.input}" for part in parts),
            candidates=listed,
        )

    def _finish_best(
        self, work: Work, candidates: Sequence[Candidate], targets: Tensor
    ) -> tuple[Choice, list[Fitted]]:
        """Fit the best choice on all of train; where a part of it diverges, the best without that part."""
        left = list(candidates)
        while left:
            choice, reason = choose(left, targets, work.task)
            self.reporter.message(f"{work.title} chose {reason}")
            parts: list[Fitted] = []
            for part in choice.parts:
                try:
                    parts.append(part.finish())
                except DivergedError as error:
                    self.reporter.message(f"note: {work.title}: {part} is left out: {error}")
                    left.remove(part)
            if len(parts) == len(choice.parts):
                return choice, parts
        raise DivergedError("every candidate diverged")

    def _possible(self, work: Work) -> list[tuple[Job, str]]:
        """The candidates, each a job and an input stage, that the data are not too large for."""
        tokens = work.train.tokens
        size = Size.of(tokens.num_samples, tokens.width, work.task.num_outputs, self.protocol)
        possible = []
        for name, stage in CANDIDATES[work.task.kind]:
            if work.job.input not in (None, stage):
                continue
            job = make_job(get_head(name), work.job.selection, ProbeRequest(("auto",)))
            try:
                check_whole(job, size, self.device, self.limit)
            except RequestError as error:
                self.reporter.message(f"{work.title}: {name} on {stage} is left out: {error}")
            else:
                possible.append((job, stage))
        if not possible:
            raise RequestError(
                f"nothing is left for auto on the input stage {work.job.input}; leave --input out"
            )
        return possible

    def _candidate(self, work: Work) -> Candidate:
        name, stage = work.job.head.name, self.protocol.input
        if work.job.solver in (EXACT, CLOSED):
            # These are fitted in seconds, so the final fit is not put off.
            fitted, held_out = (self._solved if work.job.solver == EXACT else self._computed)(work)
            return Candidate(name, stage, fitted.validation, held_out.cpu(), lambda: fitted)
        sweep, started = self._plan(work), time.perf_counter()
        with threads(suitable_threads(sweep)):
            unfinished = self._unfinished(replace(work, run=f"{work.run}-{name}-{stage}"))
            found, options = self._sweep(work, sweep, unfinished, tune)
            self._tell_diverged(work, found.diverged)
            # Of members that an earlier run trained only the score is known.
            held_out = (
                found.held_out if len(found.held_out) else held_out_outputs(sweep, found.member, options)
            )
        seconds = time.perf_counter() - started

        def finish_it() -> Fitted:
            with threads(suitable_threads(sweep)):
                member, head, _ = finish(
                    sweep, replace(found, validation={found.member: found.validation[found.member]}), options
                )
            return self._trained(work, member, found.validation, head, seconds)

        return Candidate(name, stage, found.validation[found.member], held_out, finish_it)
