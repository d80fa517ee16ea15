"""`featcache probe`, as a function: train heads on a cache, score them once on test, keep what came out."""

from collections.abc import Iterator

import torch

from featcache.probing.inputs.data import SplitData
from featcache.probing.inputs.memory import TRAIN
from featcache.probing.notes import notes
from featcache.probing.repetitions import Repetition
from featcache.probing.requests.jobs import HeadJob, jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.rows import ResultRow
from featcache.probing.run_output import KeptRuns, save_run
from featcache.probing.run_plan import ProbeContext, Run, check_job, plan_runs, streaming_note
from featcache.probing.run_row import result_row
from featcache.probing.run_training import draw_train_samples, load_job, train_and_score
from featcache.probing.training.process import flush_denormals, return_freed_memory
from featcache.store.errors import DivergedError
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import Cache


def probe(
    cache: Cache,
    request: ProbeRequest,
    *,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
) -> list[ResultRow]:
    """Train and score heads on a cache.

    The linear probe on the last layer's class token is always trained too; gains are measured against it. Runs that the
    results hold already, with the same cache and settings, are taken from there. Every row is written as soon as it is known.

    Args:
        cache: an open cache with the splits ``train`` and ``test``.
        request: what to train.
        device: where to train.
        reporter: receives messages and progress.

    Returns:
        The baseline's rows first, then those asked for, seed by seed.

    Raises:
        UnknownNameError: a layer or token kind does not exist or is not cached.
        RequestError: the train split is too small, or the memory does not hold what is needed.
        CacheError: the cache is damaged.
        DivergedError: heads diverged; raised after all other heads were trained, with the rows of these.
    """
    flush_denormals()
    requested = jobs(cache, request)
    request.out.mkdir(parents=True, exist_ok=True)
    reporter = reporter or Silent()
    for note in notes(cache, request):
        reporter.message(f"note: {note}")
    context = ProbeContext.of(cache, request, torch.device(device))
    for job in requested:
        check_job(context, job)
    for note in filter(None, dict.fromkeys(streaming_note(context, job) for job in requested)):
        reporter.message(f"note: {note}")
    runner = _Runner(context, reporter)
    rows: list[ResultRow] = []
    for job in requested:
        rows += runner.run(job)
        return_freed_memory()
    if runner.failures:
        raise DivergedError("\n".join(runner.failures), rows)
    return rows


class _Runner:
    """Runs jobs one after another, and remembers the scores of the baseline, which must be the first job."""

    def __init__(self, context: ProbeContext, reporter: Reporter) -> None:
        self._context = context
        self._reporter = reporter
        self._kept = KeptRuns(context.request.out, force=context.request.force)
        self._baseline: dict[Repetition, float | None] = {}
        self.failures: list[str] = []
        """Descriptions of diverged runs, one line each."""

    def run(self, job: HeadJob) -> Iterator[ResultRow]:
        """Yield the row of every run of a job; runs that the results lack are trained. Runs that diverge have no row."""
        data: dict[str, SplitData] = {}
        for run in plan_runs(self._context, job):
            row = self._kept.find(run)
            if row is not None:
                self._reporter.message(f"{run.title}: taken from earlier results (--force trains it again)")
            else:
                data = data or load_job(self._context, job)
                try:
                    row = self._train(run, data)
                except DivergedError as error:
                    self._reporter.message(f"failed: {error}")
                    self.failures.append(str(error))
                    self._baseline.setdefault(run.repetition, None)
                    continue
            self._baseline.setdefault(run.repetition, row.score)
            yield row

    def _train(self, run: Run, data: dict[str, SplitData]) -> ResultRow:
        context, test = self._context, data["test"]
        train = draw_train_samples(context, run, data[TRAIN], self._reporter)
        scored = train_and_score(context, run, train, test, self._reporter)
        row = result_row(context, run, scored, self._baseline)
        save_run(context, run, row, scored, test)
        self._kept.add(row)
        return row
