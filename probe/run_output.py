"""Results of runs on disk: the rows that are known, and the files in the folder of a head."""

from dataclasses import replace
from pathlib import Path

from featcache.probing.attention import mean_attention, save_attention
from featcache.probing.heads import get_head
from featcache.probing.inputs.data import SplitData
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.results.head_sources import HeadSource
from featcache.probing.results.predictions import PREDICTIONS_FILE, save_predictions
from featcache.probing.results.records import save_curve, save_sweep
from featcache.probing.results.rows import ResultRow, append_row, read_rows, save_candidates, save_scores
from featcache.probing.results.saved_head import (
    CONFIG_FILE,
    HeadConfig,
    describe_parts,
    features_digest,
    save_head,
    views_in,
)
from featcache.probing.run_plan import ProbeContext, Run
from featcache.probing.run_training import ScoredHead
from featcache.probing.scoring.kinds import SINGLE_LABEL
from featcache.probing.training.fitted import FittedHead
from featcache.store.reading.reader import Cache


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


def config_of(cache: Cache, job: HeadJob, row: ResultRow, fitted: FittedHead, width: int) -> HeadConfig:
    """Return the metadata of a saved head, whose tokens have `width` channels."""
    backbone, selection = cache.spec.backbone, fitted.selection or job.selection
    return HeadConfig(
        head=fitted.name,
        layers=selection.layers,
        tokens=row.tokens,
        num_tokens=selection.num_tokens,
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
        parts=describe_parts(selection),
        features=features_digest(backbone, views_in(cache, row.views)),
        views=row.views,
        sources=[HeadSource.of(cache, describe_parts(selection), views_in(cache, row.views))],
        units=cache.inventory.units,
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
        labels = test.row_labels if row.target_kind == SINGLE_LABEL else None
        record = mean_attention(fitted.head, test.tokens, job.selection, labels, class_names)
        save_attention(folder, record, f"{row.dataset}, {row.model}: attention over test images")
