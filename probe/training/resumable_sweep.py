"""Run a sweep so that an interrupted run loses only the members that were training, and say beforehand how long it takes."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from featcache.devices.memory import is_out_of_memory
from featcache.probing.training.estimate import Estimate, estimate_sweep
from featcache.probing.training.fitted import FitTask
from featcache.probing.training.strategy import FitSettings
from featcache.probing.training.sweep import SweepResult
from featcache.probing.training.sweep_options import (
    SweepOptions,
    no_room,
    with_group_size,
    with_smaller_groups,
)
from featcache.probing.training.sweep_plan import Sweep
from featcache.probing.training.tuning import Tuning
from featcache.probing.training.unfinished import Unfinished
from featcache.store.errors import DivergedError
from featcache.store.text import rough_duration

# A group of members is cut so that about this many seconds of work are the most that an interruption loses.
GROUP_SECONDS = 300.0

Outcome = TypeVar("Outcome", SweepResult, Tuning)


def unfinished_sweep(fit_task: FitTask, settings: FitSettings) -> Unfinished | None:
    """Return the place for the members of a sweep until the sweep is complete; None where nothing is kept."""
    return None if settings.out is None else Unfinished(settings.out, fit_task.run)


def run_resumable(
    fit_task: FitTask,
    settings: FitSettings,
    sweep: Sweep,
    run: Callable[[Sweep, SweepOptions], Outcome],
) -> tuple[Outcome, SweepOptions]:
    """Run a sweep, or its choice alone, from where an earlier run was interrupted.

    Args:
        fit_task: what is fitted; its run id names the file of finished members.
        settings: where members are kept, and how the sweep runs.
        sweep: the plan.
        run: `run_sweep` or `tune`.

    Returns:
        The outcome, and the options for more trainings of the same sweep.

    Raises:
        DivergedError: every member diverged; what was kept is removed.
    """
    unfinished = unfinished_sweep(fit_task, settings)
    finished = [] if settings.force or unfinished is None else unfinished.read()
    options = SweepOptions(
        settings.device,
        settings.precision,
        memory=settings.memory,
        finished=finished,
        on_group=None if unfinished is None else unfinished.write,
        on_note=lambda note: settings.reporter.message(f"note: {fit_task.title}: {note}"),
    )
    options = _announce(fit_task, settings, sweep, options)
    try:
        with settings.reporter.progress(fit_task.title, "updates") as update:
            outcome = run(sweep, replace(options, on_progress=update))
    except KeyboardInterrupt:
        if unfinished is not None:
            kept = sum(map(len, unfinished.read()))
            settings.reporter.message(
                f"{kept} of {sweep.num_trainings} members are kept; the same command goes on"
            )
        raise
    except DivergedError:
        if unfinished is not None:
            unfinished.remove()
        raise
    if unfinished is not None:
        unfinished.remove()
    return outcome, replace(options, finished=(), on_group=None)


def _announce(fit_task: FitTask, settings: FitSettings, sweep: Sweep, options: SweepOptions) -> SweepOptions:
    """Report how long a sweep will take, and cut groups that would take too long."""
    estimate, options = _estimate(sweep, with_group_size(sweep, options))
    if estimate.seconds > 2 * GROUP_SECONDS:
        most = estimate.group_of(GROUP_SECONDS, sweep.tuning.num_steps)
        options = replace(options, group_size=min(most, options.group_size or most))
    finished = sum(map(len, options.finished))
    rounds = f" in {len(sweep.rounds)} rounds" if len(sweep.rounds) > 1 else ""
    if settings.protocol.halving > 1 and not rounds:
        rounds = " (too few members or updates to halve)"
    folds = f" x {len(sweep.splits)} folds" if len(sweep.splits) > 1 else ""
    settings.reporter.message(
        f"{fit_task.title}: {sweep.num_trainings} members{rounds}{folds} x {sweep.tuning.num_steps:,} updates in batches of "
        f"{sweep.tuning.batch_size:,}, {settings.precision}{', streamed' if fit_task.train.streamed else ''}"
        + (f", {finished} members from an interrupted run" if finished else "")
        + f"; about {rough_duration(estimate.seconds)}"
    )
    return options


def _estimate(sweep: Sweep, options: SweepOptions) -> tuple[Estimate, SweepOptions]:
    """Return the estimate, and the options with groups of a size for which the device has room."""
    while True:
        try:
            return estimate_sweep(sweep, options), options
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if options.group_size == 1:
                raise no_room(options) from error
        options = with_smaller_groups(options, options.group_size or len(sweep.members))
