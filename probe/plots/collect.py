"""From a folder of results to figures: what each plot needs is read from the rows and from what is kept beside the heads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from featcache.probing.plots.attention import attention_by_class_figure, attention_figure
from featcache.probing.plots.calibration import calibration_figure, reliability
from featcache.probing.plots.curves import curves_figure
from featcache.probing.plots.gains import gains_figure
from featcache.probing.plots.shots import ShotsPoint, shots_figure
from featcache.probing.plots.sweep import sweep_figure
from featcache.probing.report.columns import Place, column_names, place_of
from featcache.probing.report.groups import LESS_IS_BETTER, NO_FRACTION, Group
from featcache.probing.report.numbers import factor
from featcache.probing.report.pivot import cell_notes, pivot_differences
from featcache.probing.report.preprocessing import model_text, words_of_groups
from featcache.probing.report.views import Against, score_words
from featcache.probing.results.predictions import PREDICTIONS_FILE, read_confidences
from featcache.probing.results.records import AttentionRecord, read_attention, read_curve, read_sweep
from featcache.probing.results.rows import ResultRow
from featcache.store.catalogue import slug
from featcache.store.errors import RequestError

LINES_OF_INTERVALS = "thin lines: 95 % over test images; thick lines: deviation over seeds"
Named = Iterator[tuple[str, Figure]]
"""Figures, each with the stem of its files."""


def draw(kind: str, folder: Path, groups: Sequence[Group], against: Against) -> Named:
    """Draw one kind of plot, one of `KINDS`, for all groups that have what it takes.

    Args:
        kind: which.
        folder: of the results.
        groups: what to draw.
        against: what gains are taken over.

    Raises:
        CacheError: a file is damaged.
    """
    if kind in _OF_ALL:
        yield from _OF_ALL[kind](groups, against)
        return
    columns, words = column_names(groups), words_of_groups(groups)
    seen: set[str] = set()
    for group in groups:
        model = model_text(group.first, words)
        title = f"{group.first.dataset}, {model}: {columns[id(group)]}"
        stem = "-".join(map(slug, (group.first.dataset, model, columns[id(group)])))
        # A slug is short: long lists of layers may begin alike.
        stem += f"-{group.first.setup}" if stem in seen else ""
        seen.add(stem)
        for name, figure in _OF_GROUPS[kind](folder, group, title):
            yield f"{name}-{stem}", figure


def _gains(groups: Sequence[Group], against: Against) -> Named:
    try:
        pivot = pivot_differences(groups, against.groups, against.reference, against.images)
    except RequestError:
        return
    cells = pivot.cells.values()
    lines = [f"{score_words(groups)} over {against.reference}", *cell_notes(cells)]
    if any(cell.interval for cell in cells):
        tested = dict.fromkeys(f"{group.first.dataset} {group.test_samples}" for group in groups)
        lines += [LINES_OF_INTERVALS, f"test images: {', '.join(tested)}"]
    title = "\n".join(lines)
    yield "gains", gains_figure(pivot, title, str(against.reference))


def _shots(groups: Sequence[Group], against: Against) -> Named:
    """A figure for every dataset and backbone with few-shot runs."""
    curves: dict[Place, dict[str, list[ShotsPoint]]] = {}
    few = [group for group in groups if group.first.shots is not None]
    names = column_names(few, told=("shots",))
    for group in few:
        by = factor(group.score)
        deviation = None if group.deviation is None else by * group.deviation
        pair = group.image_interval
        interval = None if pair is None else (by * pair[0], by * pair[1])
        point = ShotsPoint(group.first.shots or 0, by * group.mean, deviation, interval)
        curves.setdefault(place_of(group), {}).setdefault(names[id(group)], []).append(point)
    words = words_of_groups(few)
    for place, found in curves.items():
        model = f"{place.model} ({words[place.cache_key]})" if place.cache_key in words else place.model
        score = score_words(few) + ("" if few[0].score in NO_FRACTION else ", %")
        score += "; less is better" if few[0].score in LESS_IS_BETTER else ""
        title = f"{place.dataset}, {model}: from few samples"
        if any(point.interval for points in found.values() for point in points):
            title += f"\n{LINES_OF_INTERVALS}"
        yield f"shots-{slug(place.dataset)}-{slug(model)}", shots_figure(found, title, score)


def _attention(folder: Path, group: Group, title: str) -> Named:
    mean = _mean_attention(folder, group)
    if mean is not None:
        yield (
            "attention",
            attention_figure(mean.weights, mean.layers, mean.tokens, f"{title}\nattention over test images"),
        )


def _attention_by_class(folder: Path, group: Group, title: str) -> Named:
    mean = _mean_attention(folder, group)
    if mean is not None and mean.by_class is not None:
        text = f"{title}\nattention over the test images of each class"
        figure = attention_by_class_figure(mean.by_class, mean.layers, mean.tokens, mean.class_names, text)
        yield "attention-by-class", figure


def _mean_attention(folder: Path, group: Group) -> AttentionRecord | None:
    """The mean over seeds."""
    records = [record for row in group.rows if (record := read_attention(folder / row.folder)) is not None]
    if not records:
        return None
    by_class = [record.by_class for record in records if record.by_class is not None]
    first = records[0]
    return AttentionRecord(
        first.layers,
        first.tokens,
        np.mean([record.weights for record in records], axis=0),
        first.class_names,
        np.mean(by_class, axis=0) if len(by_class) == len(records) else None,
    )


def _curves(folder: Path, group: Group, title: str) -> Named:
    curves = {
        (row.seed, row.draw): curve
        for row in group.rows
        if (curve := read_curve(folder / row.folder)) is not None
    }
    if curves:
        yield "curve", curves_figure(curves, title)


def _sweeps(folder: Path, group: Group, title: str) -> Named:
    for row in group.rows:
        record = read_sweep(folder / row.folder)
        if record is not None and len(record.trials) > 1:
            yield (
                f"sweep-s{row.seed}{_draw(row)}",
                sweep_figure(record, f"{title}, seed {row.seed}{_draw(row, ', draw ')}"),
            )


def _draw(row: ResultRow, words: str = "-d") -> str:
    return "" if row.shots is None else f"{words}{row.draw}"


def _calibration(folder: Path, group: Group, title: str) -> Named:
    """Draw the predictions of all seeds together."""
    found = [read_confidences(folder / row.folder / PREDICTIONS_FILE) for row in group.rows]
    probability = np.concatenate([one[0] for one in found])
    hit = np.concatenate([one[1] for one in found])
    if len(probability):
        yield "calibration", calibration_figure(reliability(probability, hit, runs=len(found)), title)


_OF_GROUPS: Mapping[str, Callable[[Path, Group, str], Named]] = {
    "attention": _attention,
    "attention-by-class": _attention_by_class,
    "curves": _curves,
    "sweep": _sweeps,
    "calibration": _calibration,
}
_OF_ALL: Mapping[str, Callable[[Sequence[Group], Against], Named]] = {"gains": _gains, "shots": _shots}
KINDS = (*_OF_ALL, *_OF_GROUPS)
