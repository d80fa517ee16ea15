"""One head, chosen and fitted on train: by training the members of a protocol, by formula, by the exact solver, or the best of these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.probing.inputs.data import SplitData
from featcache.probing.protocols.protocol import Member, Protocol
from featcache.probing.requests.request import (
    ADAMW,
    CHOICE,
    CLOSED_FORM,
    EXACT,
    GROUP_LASSO,
    HeadJob,
)
from featcache.probing.results.rows import Chosen
from featcache.probing.scoring.kinds import MULTI_LABEL, REGRESSION, REGRESSION_LOSSES, SINGLE_LABEL
from featcache.probing.scoring.tasks import LEAST_REGRESSION, make_task
from featcache.probing.solver.exact import PenaltyKind, run_exact_sweep
from featcache.probing.training.closed_form import ends_of_grid, run_closed_form_sweep
from featcache.probing.training.competition import choose_head
from featcache.probing.training.estimate import estimate_sweep
from featcache.probing.training.fitted import FitTask, FittedHead, count_parameters, record_sweep
from featcache.probing.training.process import threads
from featcache.probing.training.sweep import (
    SweepOptions,
    SweepResult,
    Tuning,
    describe_diverged,
    group_size,
    run_sweep,
    suitable_threads,
)
from featcache.probing.training.sweep_plan import Sweep, plan_sweep
from featcache.probing.training.unfinished import Unfinished
from featcache.store.errors import DivergedError
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
    """Bytes that the user allows for the run; None for all free memory."""

    def fit(self, job: HeadJob, seed: int, run: str, title: str, train: SplitData) -> FittedHead:
        """Choose and fit a head.

        Args:
            job: head and tokens.
            seed: fixes everything that is drawn.
            run: id of the run, under which unfinished work is kept.
            title: what the user is shown.
            train: the train split.

        Raises:
            RequestError: the train split is too small, or its targets are not for this head.
            DivergedError: every fit diverged.
        """
        task, targets = make_task(train.labels, self.target_kind, loss=self.regression_loss)
        work = FitTask(job, seed, run, title, train, task, targets)
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
            return fitter.fit_work(work)
        except DivergedError as error:
            raise DivergedError(f"{title}: {error}") from error

    def _is_indivisible(self, work: FitTask) -> bool:
        """Return whether no sample can be held out; folds and groups have their own errors."""
        number = len(work.targets)
        if number < 2 or self.protocol.num_folds(number) != 1 or work.train.groups is not None:
            return False
        return not len(work.task.holdout(work.targets, self.protocol.validation_fraction, work.seed)[1])

    def fit_work(self, work: FitTask) -> FittedHead:
        """Choose and fit by the solver of the job; errors as of `fit`."""
        how = {EXACT: self._solve, CLOSED_FORM: self._compute, CHOICE: self._choose, ADAMW: self._train}
        return how[work.job.solver](work)

    def _train(self, work: FitTask) -> FittedHead:
        sweep = self.plan(work)
        with threads(suitable_threads(sweep)):
            result, _ = self.sweep(work, sweep, self.unfinished(work), run_sweep)
        self.tell_diverged(work, result.diverged)
        return self.trained(work, result.member, result.validation, result.head, result.seconds)

    def tell_diverged(self, work: FitTask, members: Sequence[Member]) -> None:
        """Report the members that diverged, if any."""
        if members:
            self.reporter.message(f"note: {work.title}: {describe_diverged(members)}")

    def unfinished(self, work: FitTask) -> Unfinished | None:
        """Return the place for the members of a sweep until the sweep is complete."""
        return None if self.out is None else Unfinished(self.out, work.run)

    def plan(self, work: FitTask) -> Sweep:
        """Plan the sweep of a head that is trained; errors as of `plan_sweep`."""
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

    def trained(
        self, work: FitTask, member: Member, validation: Mapping[Member, float], head: Head, seconds: float
    ) -> FittedHead:
        """Return the head of a sweep with its chosen settings."""
        return FittedHead(
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

    def sweep(
        self,
        work: FitTask,
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

    def _announce(self, work: FitTask, sweep: Sweep, options: SweepOptions) -> tuple[SweepOptions, int]:
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

    def _choose(self, work: FitTask) -> FittedHead:
        return choose_head(self, work)

    def _compute(self, work: FitTask) -> FittedHead:
        return self.computed(work)[0]

    def computed(self, work: FitTask) -> tuple[FittedHead, Tensor]:
        """Fit by formula; also the outputs on held-out samples."""
        with self.reporter.progress(work.title, "fits") as update:
            result = run_closed_form_sweep(
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
        fitted = FittedHead(
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

    def _solve(self, work: FitTask) -> FittedHead:
        return self.solved(work)[0]

    def solved(self, work: FitTask) -> tuple[FittedHead, Tensor]:
        """Solve exactly; also the outputs on held-out samples."""
        job = work.job
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
        fitted = FittedHead(
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
