"""The table that ``featcache probe`` prints."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from featcache.probing.inputs.selection import token_words
from featcache.probing.report.groups import clip, repetitions
from featcache.probing.report.preprocessing import model_text, preprocessing_words
from featcache.probing.report.reference import TRAINED_PROBE
from featcache.probing.report.significance import are_alike, mean_interval, spread
from featcache.probing.requests.request import LAYER_CHOICE

if TYPE_CHECKING:
    from featcache.probing.results.rows import ResultRow

SOLVED, TRAINED = "over solved", "over trained"
"""Columns of gains over the linear probe on the last class token, solved exactly and trained by the protocol."""
NUMERIC = ("seed", "top-1", SOLVED, TRAINED, "parameters", "seconds")
UNDEFINED = "undefined"
"""Shown for a score that is not defined on the test samples, such as R2 of a single sample."""
METRICS = {"balanced_accuracy": "balanced acc", "mean_average_precision": "mAP", "r2": "R2"}


def rows_table(rows: Sequence["ResultRow"], grid: bool) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the columns and lines of the table: a line for every row, and one for the mean of repeated trainings.

    The interval of a row is the bootstrap's over test samples; that of a mean is Student's t over seeds, or over draws of samples.

    Args:
        rows: at least one.
        grid: whether they are of several caches.
    """
    metrics = dict.fromkeys(METRICS.get(row.metric, row.metric) for row in rows)
    names = ("dataset", "model") if grid else ()
    columns = (
        *names,
        "head",
        "layers",
        "tokens",
        "input",
        "seed",
        "/".join(metrics) + " [95 %]",
        "top-1",
        SOLVED,
        TRAINED,
    )
    lines, words = [], preprocessing_words(rows)
    for group in _groups(rows):
        first = [group[0].dataset, model_text(group[0], words)] if grid else []
        lines += [first + _line(row) for row in group]
        if len(group) > 1:
            lines.append(first + _mean_line(group))
    return (*columns, "chosen", "parameters", "seconds"), lines


def _groups(rows: Sequence["ResultRow"]) -> list[list["ResultRow"]]:
    """Group rows that differ only in seed and draw."""
    groups: dict[tuple[object, ...], list[ResultRow]] = {}
    for row in rows:
        key = (
            row.cache_key,
            row.head,
            row.solver,
            tuple(row.layer_names),
            tuple(row.tokens),
            row.tap,
            tuple(row.views),
        )
        # What auto chooses may differ from seed to seed.
        transform = "" if row.head == "auto" else row.input
        groups.setdefault((*key, transform, row.shots), []).append(row)
    return list(groups.values())


def _line(row: "ResultRow") -> list[str]:
    score = UNDEFINED if row.score is None else f"{100 * row.score:.2f}"
    # Without width it is of an earlier version, and of classes with one or two test images.
    if row.score_interval is not None and row.score_interval[0] < row.score_interval[1]:
        low, high = row.score_interval
        score += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return [
        row.head,
        row.layers,
        token_words(row.tokens, row.tap, row.views),
        row.input,
        str(row.seed) if row.shots is None else f"{_shots(row.shots)}, draw {row.draw}, {row.seed}",
        score,
        "" if row.top1 is None else f"{100 * row.top1:.2f}",
        *("" if gain is None else f"{100 * gain:+.2f}" for gain in (row.gain_over_solved, row.gain)),
        chosen(row),
        f"{row.parameters:,}",
        f"{row.seconds:.1f}",
    ]


def chosen(row: "ResultRow") -> str:
    """Return the setting that validation chose, in a few words."""
    words = [] if row.chosen_head == row.head else [row.chosen_head]
    if row.solver == LAYER_CHOICE:
        words = [f"layer {layer}" for layer in row.kept_layers or ()]
    if row.penalty is not None:
        words.append(f"{row.penalty_kind or 'l2'} {row.penalty:.2g}")
    elif row.settings is not None:
        words += [f"{name} {value:.3g}" for name, value in row.settings.items()]
    elif row.learning_rate is not None:
        words.append(f"lr {row.learning_rate:g}")
        words.append(f"decay {row.weight_decay:g}")
        words += [f"dropout {row.dropout:g}"] if row.dropout else []
    return ", ".join(words)


def _mean_line(group: Sequence["ResultRow"]) -> list[str]:
    first = group[0]
    score = _points(group, lambda row: row.score)
    scores = _repetitions(group, lambda row: row.score)
    interval = mean_interval(scores)
    if are_alike(scores):
        score = f"{100 * mean(scores):.2f}, all alike"
    if interval is not None and len(scores) > 2:  # of two, it spans more than there is
        low, high = clip(first.metric, interval)
        score += f" [{100 * low:.1f}, {100 * high:.1f}]"
    transforms = dict.fromkeys(row.input for row in group)
    return [
        first.head,
        first.layers,
        token_words(first.tokens, first.tap, first.views),
        first.input if len(transforms) == 1 else "",
        "mean" if first.shots is None else f"{_shots(first.shots)}, mean",
        score,
        _points(group, lambda row: row.top1),
        _points(group, lambda row: row.gain_over_solved, "+"),
        _points(group, lambda row: row.gain, "+"),
        "",
        f"{round(mean(row.parameters for row in group)):,}",
        f"{sum(row.seconds for row in group):.1f}",
    ]


def _shots(number: int) -> str:
    return f"{number} shot" if number == 1 else f"{number} shots"


Field = Callable[["ResultRow"], float | None]


def _points(group: Sequence["ResultRow"], field: Field, sign: str = "") -> str:
    """Format mean and deviation as percent; empty without such a score."""
    known = [value for row in group if (value := field(row)) is not None]
    if not known:
        return ""
    deviation = spread(_repetitions(group, field))
    return f"{100 * mean(known):{sign}.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _repetitions(group: Sequence["ResultRow"], field: Field) -> list[float]:
    return repetitions({(row.draw, row.seed): value for row in group if (value := field(row)) is not None})


def edge_notes(rows: Sequence["ResultRow"], rates: Sequence[float]) -> list[str]:
    """Return a note on the heads that chose the largest learning rate of a sweep, and one on those that chose the smallest.

    The trained baseline has none: beside it stands the same probe, solved.

    Args:
        rows: results of one request.
        rates: learning rates of its protocol.
    """
    if len(set(rates)) == 1:
        return []  # nothing was chosen
    solved = any(row.gain_over_solved is not None for row in rows)
    notes = []
    for rate, end, meaning in (
        (max(rates), "largest", "they may not have converged"),
        (min(rates), "smallest", "a smaller one may be better"),
    ):
        heads = dict.fromkeys(
            f"{row.head} on {row.layers}, {'+'.join(row.tokens)}"
            for row in rows
            if row.learning_rate == rate and not (solved and TRAINED_PROBE.is_row(row))
        )
        if heads:
            notes.append(
                f"the {end} learning rate of the sweep, {rate:g}, was chosen by {'; '.join(heads)}: {meaning}"
            )
    return notes


def interval_notes(rows: Sequence["ResultRow"]) -> list[str]:
    """Return the note that says what the intervals in brackets are about, and of how many test samples."""
    if not any(row.score_interval for row in rows):
        return []
    tested = " and ".join(f"{number:,}" for number in sorted({row.test_samples for row in rows}))
    seeds = "; of means, over seeds or draws" if any(len(group) > 2 for group in _groups(rows)) else ""
    return [f"[95 %]: over other test images, of which there are {tested}{seeds}"]
