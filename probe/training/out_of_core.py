"""Decide at the time of a fit whether its features are read block by block, and where its solutions are kept meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape

from featcache.probing.solver.journal import PathJournal
from featcache.probing.solver.logistic import solver_device
from featcache.probing.solver.streamed_solver import StreamedPlan
from featcache.probing.training.blocks_memory import least_bytes, plan_blocks
from featcache.probing.training.fitted import FitTask
from featcache.probing.training.full_batch import bytes_needed, fits_whole, memory_limit
from featcache.probing.training.size import Size
from featcache.probing.training.strategy import FitSettings
from featcache.probing.training.unfinished import FOLDER
from featcache.store.errors import RequestError
from featcache.store.text import format_bytes, rough_duration

LEAST_SECONDS = 1.0
"""Seconds of a pass over all samples that are worth a line."""


def streamed_plan(fit_task: FitTask, settings: FitSettings) -> StreamedPlan | None:
    """Return how to read features block by block, and say so; None where they fit into memory, or where the method needs them whole.

    Raises:
        RequestError: beside the tokens that were loaded meanwhile, too little memory is left.
    """
    tokens, job = fit_task.train.tokens, fit_task.job
    size = Size.of(
        tokens.num_samples, tokens.width, fit_task.task.num_outputs, settings.protocol, tokens.num_views
    )
    device = solver_device(settings.device)
    limit = memory_limit(device, settings.memory_limit)
    if fits_whole(job, size, limit):
        return None
    if settings.memory_limit is not None and not fit_task.train.streamed:
        limit = max(0, limit - fit_task.train.bytes)
    plan, least = plan_blocks(job, size, limit, device), least_bytes(job, size, device)
    # A method that needs all features at once was refused before where they were certain not to fit.
    if plan is None and least is not None:
        raise RequestError(
            f"{fit_task.title} needs at least about {format_bytes(least)} of memory beside the {format_bytes(fit_task.train.bytes)} of its "
            f"tokens, and {format_bytes(limit)} are left; give more with --memory, or ask for fewer layers"
        )
    if plan is not None:
        settings.reporter.message(
            f"note: {fit_task.title}: with all features in memory this takes about {format_bytes(bytes_needed(job, size, limit))}, and "
            f"{format_bytes(limit)} are left, so features are read again and again, {plan.block_rows:,} samples at a time"
        )
    return plan


def report_first_pass(fit_task: FitTask, settings: FitSettings) -> Callable[[float], None]:
    """Return a function that reports the seconds of a pass, once and if they are worth a line: each penalty takes many passes."""
    reported: list[float] = []

    def report(seconds: float) -> None:
        if not reported and seconds >= LEAST_SECONDS:
            settings.reporter.message(
                f"{fit_task.title}: a step over all samples takes about {rough_duration(seconds)}; a penalty takes 10 steps if it is "
                "strong, and hundreds if it is weak"
            )
        reported.append(seconds)

    return report


def open_journal(fit_task: FitTask, settings: FitSettings) -> PathJournal | None:
    """Return the place for solutions until the run has a result; None where nothing is kept."""
    if settings.out is None or not fit_task.run:
        return None
    name = f"{fit_task.run}.{fit_task.job.head.name}.{settings.protocol.input}"
    journal = PathJournal(settings.out / FOLDER / name, solver_device(settings.device))
    if settings.force:
        journal.remove()
    elif journal.count:
        settings.reporter.message(
            f"{fit_task.title}: {journal.count} files with solutions of an interrupted run are there, which are not computed again"
        )
    return journal


@contextmanager
def noted_interruption(fit_task: FitTask, settings: FitSettings) -> Iterator[None]:
    """Say on Ctrl-C what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        kept = sum(journal.count for journal in _journals(fit_task, settings))
        if kept:
            settings.reporter.message(
                f"{fit_task.title}: solutions in {kept} files are kept; the same command resumes"
            )
        raise


def remove_journals(fit_task: FitTask, settings: FitSettings) -> None:
    """Remove all solutions that were kept of a run, since the run has a result."""
    for journal in _journals(fit_task, settings):
        journal.remove()


def _journals(fit_task: FitTask, settings: FitSettings) -> list[PathJournal]:
    """Return the journals of a run, which has several for ``auto``."""
    if settings.out is None or not fit_task.run:
        return []
    return [PathJournal(folder) for folder in (settings.out / FOLDER).glob(f"{escape(fit_task.run)}.*.*")]
