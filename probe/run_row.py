"""The row of a run in the results, and the folder of its head."""

import time
from dataclasses import asdict
from importlib.metadata import version
from math import isnan

from featcache.probing.requests.request import EXACT
from featcache.probing.results.rows import MODEL, ResultRow
from featcache.probing.run_plan import ProbeContext, Run
from featcache.probing.run_training import ScoredHead
from featcache.store.catalogue import slug
from featcache.store.preprocessing import preprocessing_parts
from featcache.store.quantization import INT8
from featcache.store.reading.reader import Cache
from featcache.store.text import encodable


def names_of(cache: Cache) -> tuple[str, str]:
    """Return the model and dataset of a cache, for titles."""
    names = [cache.provenance.get(f"{noun}_names") or [""] for noun in ("model", "dataset")]
    folder = cache.directory
    return encodable(str(names[0][0]) or folder.name), encodable(str(names[1][0]) or folder.parent.name)


def _preprocessing(cache: Cache) -> dict[str, str]:
    """Return the preprocessing in parts, and the model's explicit name, since caches of one model may go by its alias too.

    Results of an int8 cache are not those of the cache it was made from, so it counts as a part; rows of other types are as before.
    """
    names = cache.provenance.get("model_names") or [""]
    stored = {"dtype": f"stored as {INT8}"} if cache.spec.dtype == INT8 else {}
    return {MODEL: encodable(str(names[-1])), **preprocessing_parts(cache.spec.backbone), **stored}


def folder_of(context: ProbeContext, run: Run) -> str:
    """Return the folder of a head, relative to the results."""
    job, repetition = run.job, run.repetition
    few = [] if repetition.shots is None else [f"shots{repetition.shots}", f"draw{repetition.draw}"]
    model, dataset = names_of(context.cache)
    words = (
        dataset,
        model,
        job.head.name,
        job.selection.name,
        job.selection.token_names,
        run.protocol.name if job.solver != EXACT else job.penalty,
        *few,
    )
    return "/".join(("heads", "-".join((*map(slug, words), f"s{repetition.seed}", run.id))))


def result_row(context: ProbeContext, run: Run, scored: ScoredHead) -> ResultRow:
    """Return the row of a run, with its head and scores, but without gains."""
    job, repetition, fitted, report = run.job, run.repetition, scored.fitted, scored.report
    model, dataset = names_of(context.cache)
    return ResultRow(
        run=run.id,
        cache_key=context.cache.key,
        model=model,
        dataset=dataset,
        head=job.head.name,
        layers=job.selection.name,
        layer_names=job.selection.layers,
        tokens=job.selection.kinds,
        num_heads=job.num_heads,
        precision=context.precision,
        protocol=run.protocol.name,
        input=fitted.input,
        seed=repetition.seed,
        shots=repetition.shots,
        draw=repetition.draw,
        folds=run.protocol.num_folds(scored.num_train_samples),
        target_kind=fitted.task.kind,
        metric=fitted.task.metric,
        score=report.scores[fitted.task.metric],
        scores=report.scores,
        score_interval=scored.intervals.get(fitted.task.metric),
        balanced_accuracy=report.scores.get("balanced_accuracy"),
        top1=report.scores.get("top1"),
        top5=report.scores.get("top5"),
        gain=None,
        validation_score=None if isnan(fitted.validation) else fitted.validation,
        chosen_head=fitted.name,
        solver=job.solver,
        penalty_kind=job.penalty if job.solver == EXACT else None,
        **asdict(fitted.chosen),
        parameters=fitted.parameters,
        seconds=round(fitted.seconds, 3),
        train_samples=scored.num_train_samples,
        test_samples=len(scored.outputs),
        finished_at=round(time.time(), 3),
        version=version("featcache"),
        folder=folder_of(context, run),
        setup=run.setup,
        options=dict(job.options),
        tap=job.selection.tap,
        score_intervals=dict(scored.intervals),
        views=job.selection.views,
        preprocessing=_preprocessing(context.cache),
    )
