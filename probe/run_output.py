"""The results of runs: their rows, the folders of their heads, and the files in them."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from math import isnan
from pathlib import Path

from featcache.probing.attention import mean_attention, save_attention
from featcache.probing.heads import get_head
from featcache.probing.inputs.data import SplitData
from featcache.probing.repetitions import Repetition
from featcache.probing.requests.request import EXACT, HeadJob
from featcache.probing.results.predictions import PREDICTIONS_FILE, save_predictions
from featcache.probing.results.records import save_curve, save_sweep
from featcache.probing.results.rows import ResultRow, append_row, read_rows, save_candidates, save_scores
from featcache.probing.results.saved_head import (
    CONFIG_FILE,
    HeadConfig,
    describe_parts,
    features_digest,
    save_head,
)
from featcache.probing.run_plan import ProbeContext, Run
from featcache.probing.run_training import ScoredHead
from featcache.probing.scoring.kinds import SINGLE_LABEL
from featcache.probing.training.fitted import FittedHead
from featcache.store.catalogue import slug
from featcache.store.reading.reader import Cache
from featcache.store.text import encodable


class KeptRuns:
    """The runs that the results of earlier requests, and of this one, hold.

    Args:
        out: folder of the results.
        force: whether to leave out what earlier requests wrote.
    """

    def __init__(self, out: Path, *, force: bool) -> None:
        self._out = out
        rows = [] if force else read_rows(out)
        self._rows = {row.run: row for row in rows if self._is_usable(row)}

    def _is_usable(self, row: ResultRow) -> bool:
        return not row.diverged and (self._out / row.folder / CONFIG_FILE).is_file()

    def find(self, run: Run) -> ResultRow | None:
        """Return the row of a run; one that an earlier version wrote under another id is written again under the present id."""
        row = self._rows.get(run.id)
        former = None if run.former_id is None else self._rows.get(run.former_id)
        if row is None and former is not None:
            row = replace(former, run=run.id, setup=run.setup)
            self.add(row)
        return row

    def add(self, row: ResultRow) -> None:
        """Append a row to the results."""
        append_row(self._out, row)
        self._rows[row.run] = row


def names_of(cache: Cache) -> tuple[str, str]:
    """Return the model and dataset of a cache, for titles."""
    names = [cache.provenance.get(f"{what}_names") or [""] for what in ("model", "dataset")]
    folder = cache.directory
    return encodable(str(names[0][0]) or folder.name), encodable(str(names[1][0]) or folder.parent.name)


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


def result_row(
    context: ProbeContext, run: Run, scored: ScoredHead, baseline: Mapping[Repetition, float | None]
) -> ResultRow:
    """Return the row of a run.

    Args:
        context: cache and request.
        run: the run.
        scored: its head and scores.
        baseline: scores of the linear probe that gains are measured against; without a score for this repetition, the run is
            the baseline itself.
    """
    job, repetition, fitted, report = run.job, run.repetition, scored.fitted, scored.report
    model, dataset = names_of(context.cache)
    score = report.scores[fitted.task.metric]
    reference = baseline.get(repetition, score)
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
        score=score,
        scores=report.scores,
        score_interval=scored.interval,
        balanced_accuracy=report.scores.get("balanced_accuracy"),
        top1=report.scores.get("top1"),
        top5=report.scores.get("top5"),
        gain=None if score is None or reference is None else score - reference,
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
    )


def config_of(cache: Cache, job: HeadJob, row: ResultRow, fitted: FittedHead, width: int) -> HeadConfig:
    """Return the metadata of a saved head."""
    backbone = cache.spec.backbone
    return HeadConfig(
        head=fitted.name,
        layers=row.layer_names,
        tokens=row.tokens,
        num_tokens=job.selection.num_tokens,
        options=fitted.head.options,
        input=fitted.input,
        target_kind=row.target_kind,
        width=width,
        num_classes=fitted.num_classes,
        class_names=cache.inventory.class_names,
        cache_key=row.cache_key,
        architecture=backbone.architecture,
        weights_digest=backbone.weights_digest,
        protocol=row.protocol,
        seed=row.seed,
        parts=describe_parts(job.selection),
        features=features_digest(backbone),
    )


def save_run(context: ProbeContext, run: Run, row: ResultRow, scored: ScoredHead, test: SplitData) -> None:
    """Write the head of a run, its predictions, scores, sweep, losses and attention into the row's folder."""
    cache, job, fitted = context.cache, run.job, scored.fitted
    folder = context.request.out / row.folder
    folder.mkdir(parents=True, exist_ok=True)
    class_names = cache.inventory.class_names
    save_head(folder, fitted.head, config_of(cache, job, row, fitted, test.tokens.width))
    save_predictions(
        folder / PREDICTIONS_FILE,
        test.sample_ids,
        test.labels,
        fitted.task.probabilities(scored.outputs).numpy(),
        class_names,
        row.target_kind,
        # Use the logits, since probabilities near 1 tie where logits do not.
        predicted=scored.outputs.argmax(1).numpy(),
    )
    save_scores(folder, scored.report)
    if fitted.sweep is not None:
        save_sweep(folder, fitted.sweep)
    if fitted.candidates:
        save_candidates(folder, fitted.candidates)
    if fitted.head.losses is not None:
        save_curve(folder, fitted.head.losses.tolist())
    if get_head(fitted.name).has_attention:
        labels = test.labels if row.target_kind == SINGLE_LABEL else None
        record = mean_attention(fitted.head, test.tokens, job.selection, labels, class_names)
        save_attention(folder, record, f"{row.dataset}, {row.model}: attention over test images")
