"""Fit a head by training the members of a protocol: validation chooses among them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from featcache.probing.heads.base import Head
from featcache.probing.protocols.protocol import Member
from featcache.probing.results.rows import Chosen
from featcache.probing.training.auto import Candidate
from featcache.probing.training.fitted import FitTask, FittedHead, count_parameters, record_sweep
from featcache.probing.training.process import threads
from featcache.probing.training.resumable_sweep import run_resumable
from featcache.probing.training.strategy import FitSettings
from featcache.probing.training.sweep import finish, run_sweep
from featcache.probing.training.sweep_options import suitable_threads
from featcache.probing.training.sweep_plan import Sweep, plan_sweep
from featcache.probing.training.tuning import describe_diverged, held_out_outputs, tune


class SweepStrategy:
    """Trains all members of a sweep; see `featcache.probing.training.strategy.CandidateStrategy`."""

    def fit(self, fit_task: FitTask, settings: FitSettings) -> FittedHead:
        """Train every member, then the best one on all of train."""
        sweep = _plan(fit_task, settings)
        with threads(suitable_threads(sweep)):
            result, _ = run_resumable(fit_task, settings, sweep, run_sweep)
        _report_diverged(fit_task, settings, result.diverged)
        return _fitted(fit_task, settings, result.member, result.validation, result.head, result.seconds)

    def candidate(self, fit_task: FitTask, settings: FitSettings) -> Candidate:
        """Train every member; the training of the best one on all of train is left to `Candidate.finish`."""
        name, transform = fit_task.job.head.name, settings.protocol.input
        sweep, started = _plan(fit_task, settings), time.perf_counter()
        with threads(suitable_threads(sweep)):
            own_run = replace(fit_task, run=f"{fit_task.run}-{name}-{transform}")
            tuning, options = run_resumable(own_run, settings, sweep, tune)
            _report_diverged(fit_task, settings, tuning.diverged)
            # For members of an earlier run, only the score is known.
            held_out = (
                tuning.held_out if len(tuning.held_out) else held_out_outputs(sweep, tuning.member, options)
            )
        seconds, score = time.perf_counter() - started, tuning.validation[tuning.member]

        def finish_candidate() -> FittedHead:
            with threads(suitable_threads(sweep)):
                alone = replace(tuning, validation={tuning.member: score})
                member, head, _ = finish(sweep, alone, options)
            return _fitted(fit_task, settings, member, tuning.validation, head, seconds)

        return Candidate(name, transform, score, held_out, finish_candidate)


def _plan(fit_task: FitTask, settings: FitSettings) -> Sweep:
    return plan_sweep(
        fit_task.job.build,
        fit_task.train.tokens,
        fit_task.targets,
        protocol=settings.protocol,
        has_dropout=fit_task.job.head.has_dropout,
        seed=fit_task.seed,
        task=fit_task.task,
        sample_groups=fit_task.train.groups,
    )


def _report_diverged(fit_task: FitTask, settings: FitSettings, members: Sequence[Member]) -> None:
    if members:
        settings.reporter.message(f"note: {fit_task.title}: {describe_diverged(members)}")


def _fitted(
    fit_task: FitTask,
    settings: FitSettings,
    member: Member,
    validation: Mapping[Member, float],
    head: Head,
    seconds: float,
) -> FittedHead:
    """Return the head of a sweep with its chosen settings."""
    return FittedHead(
        head,
        fit_task.task,
        count_parameters(head),
        validation=validation[member],
        chosen=Chosen(member.learning_rate, member.weight_decay, member.dropout),
        seconds=seconds,
        name=fit_task.job.head.name,
        input=settings.protocol.input,
        sweep=record_sweep(
            fit_task.task, [(vars(other), score) for other, score in validation.items()], vars(member)
        ),
    )
