"""`featcache probe`, as a function: train heads on a cache, score them once on test, keep what came out."""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from featcache.probing.baseline_scores import BaselineScores
from featcache.probing.inputs.data import SplitData
from featcache.probing.inputs.memory import TRAIN
from featcache.probing.layer_choice import choose_layer
from featcache.probing.notes import notes
from featcache.probing.repetitions import Repetition
from featcache.probing.requests.jobs import HeadJob, jobs
from featcache.probing.requests.request import LAYER_CHOICE, TEXT, TRAINED, ProbeRequest
from featcache.probing.results.rows import ResultRow
from featcache.probing.run_output import KeptRuns, save_run
from featcache.probing.run_plan import ProbeContext, Run, check_job, plan_runs, size_note, streaming_note
from featcache.probing.run_row import result_row
from featcache.probing.run_training import (
    ScoredHead,
    draw_train_samples,
    fit_run,
    load_job,
    score_head,
    train_and_score,
)
from featcache.probing.training.process import flush_denormals, return_freed_memory
from featcache.probing.zero_shot import ClassEmbeddings, EmbedClasses, embeddings_of, zero_shot
from featcache.store.errors import DivergedError, FeatcacheError, RequestError
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import Cache


def probe(
    cache: Cache,
    request: ProbeRequest,
    *,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    embed_classes: EmbedClasses | None = None,
) -> list[ResultRow]:
    """Train and score heads on a cache.

    The baselines of the request are fitted too; gains are measured against the solved and the trained linear probe on the last
    layer's class token. A baseline that nobody asked for is left out, with a note, where it takes too long or does not fit into
    memory. Runs that the results hold already, with the same cache and settings, are taken from there. Every row is written as soon
    as it is known.

    Args:
        cache: an open cache with the splits ``train`` and ``test``.
        request: what to train.
        device: where to train.
        reporter: receives messages and progress.
        embed_classes: embeds the class names for zero-shot; see `featcache.zero_shot`.

    Returns:
        The baselines' rows first, then those asked for, seed by seed.

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
    requested = [job for job in requested if _can_be_fitted(context, job, reporter)]
    for note in filter(None, dict.fromkeys(streaming_note(context, job) for job in requested)):
        reporter.message(f"note: {note}")
    runner = _Runner(context, reporter, embed_classes)
    for job in requested:
        runner.prepare(job)
    fitted: list[tuple[Repetition, ResultRow]] = []
    for job in requested:
        fitted += runner.run(job)
        return_freed_memory()
    # The first baseline was written before the scores of the others were known, and so may rows of earlier requests.
    rows = [runner.baselines.with_gains(row, repetition) for repetition, row in fitted]
    if runner.failures:
        raise DivergedError("\n".join(runner.failures), rows)
    return rows


def _can_be_fitted(context: ProbeContext, job: HeadJob, reporter: Reporter) -> bool:
    """Check a job, and return whether to run it: a baseline that nobody asked for is left out with a note where it is too large.

    Raises:
        RequestError: as of `check_job`.
    """
    if not job.implied or job.baseline == TRAINED:
        check_job(context, job)
        return True
    try:
        check_job(context, job)
        reason = size_note(context, job)
    except RequestError as error:
        reason = str(error)
    if reason is not None:
        reporter.message(f"note: the baseline {job.baseline} is left out: {reason}")
    return reason is None


class _Runner:
    """Runs jobs one after another, and remembers the scores of the baselines, which must be the first jobs."""

    def __init__(self, context: ProbeContext, reporter: Reporter, embed_classes: EmbedClasses | None) -> None:
        self._embed_classes = embed_classes
        self._context = context
        self._reporter = reporter
        self._kept = KeptRuns(context.request.out, force=context.request.force)
        self.baselines = BaselineScores()
        self.failures: list[str] = []
        """Descriptions of diverged runs, one line each."""

    def prepare(self, job: HeadJob) -> None:
        """Embed the class names that a job needs, so that weights of another model are refused before anything is trained.

        Raises:
            RequestError: nothing can embed them.
            Exception: as `embed_classes` raises.
        """
        if job.solver == TEXT and not all(map(self._kept.find, plan_runs(self._context, job))):
            self._class_embeddings()

    def _class_embeddings(self) -> ClassEmbeddings:
        if self._embed_classes is None:
            raise RequestError(
                "zero-shot needs a text tower; run it with featcache.probe or `featcache probe`"
            )
        request = self._context.request
        return embeddings_of(self._context.cache, request.templates, request.out, self._embed_classes)

    def run(self, job: HeadJob) -> Iterator[tuple[Repetition, ResultRow]]:
        """Yield the repetition and row of every run of a job; runs that the results lack are trained. Runs that diverge have no row."""
        data: dict[str, SplitData] = {}
        for run in plan_runs(self._context, job):
            row = self._kept.find(run)
            if row is not None:
                self._reporter.message(f"{run.title}: taken from earlier results (--force trains it again)")
            else:
                try:
                    if job.solver == LAYER_CHOICE:
                        row = self._fit_on_best_layer(run)
                    elif job.solver == TEXT:
                        row = self._zero_shot(run)
                    else:
                        data = data or load_job(self._context, job)
                        row = self._train(run, data)
                except FeatcacheError as error:
                    if job.implied and job.baseline != TRAINED:  # nobody asked for it, so it ends no run
                        self._reporter.message(f"note: the baseline {job.baseline} is left out: {error}")
                        return
                    if not isinstance(error, DivergedError):
                        raise
                    self._reporter.message(f"failed: {error}")
                    self.failures.append(str(error))
                    continue
            self.baselines.add(job, run.repetition, row.score)
            yield run.repetition, row

    def _train(self, run: Run, data: dict[str, SplitData]) -> ResultRow:
        context, test = self._context, data["test"]
        train = draw_train_samples(context, run, data[TRAIN], self._reporter)
        return self._keep(run, train_and_score(context, run, train, test, self._reporter), test)

    def _fit_on_best_layer(self, run: Run) -> ResultRow:
        """Choose a layer, and fit and score the head on the tokens of this layer alone."""
        context, started = self._context, time.perf_counter()
        job = choose_layer(context, run, self._reporter)
        data = load_job(context, job)
        train = draw_train_samples(context, run, data[TRAIN], self._reporter)
        fitted = fit_run(context, run, job, train, self._reporter, data["test"].bytes)
        fitted = replace(
            fitted,
            chosen=replace(fitted.chosen, kept_layers=job.selection.layers),
            selection=job.selection,
            seconds=time.perf_counter() - started,
        )
        return self._keep(run, score_head(run, fitted, data["test"], len(train.labels)), data["test"])

    def _zero_shot(self, run: Run) -> ResultRow:
        """Classify the test images by the embeddings of the class names."""
        context, started = self._context, time.perf_counter()
        fitted, test = zero_shot(context.cache, run.job, self._class_embeddings(), context.device)
        fitted = replace(fitted, seconds=time.perf_counter() - started)
        return self._keep(run, score_head(run, fitted, test, 0), test)

    def _keep(self, run: Run, scored: ScoredHead, test: SplitData) -> ResultRow:
        context = self._context
        row = self.baselines.with_gains(result_row(context, run, scored), run.repetition, run.job)
        save_run(context, run, row, scored, test)
        self._kept.add(row)
        return row
