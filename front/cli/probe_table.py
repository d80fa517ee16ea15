"""The table that ``featcache probe`` prints."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from featcache.probing.inputs.selection import token_words
from featcache.probing.report.groups import clip, repetitions
from featcache.probing.report.preprocessing import model_text, preprocessing_words
from featcache.probing.report.significance import are_alike, mean_interval, spread

if TYPE_CHECKING:
    from featcache.probing.results.rows import ResultRow

NUMERIC = ("seed", "top-1", "gain", "parameters", "seconds")
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
        "gain",
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
    if row.score_interval is not None:
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
        "" if row.gain is None else f"{100 * row.gain:+.2f}",
        chosen(row),
        f"{row.parameters:,}",
        f"{row.seconds:.1f}",
    ]


def chosen(row: "ResultRow") -> str:
    """Return the setting that validation chose, in a few words."""
    words = [] if row.chosen_head == row.head else [row.chosen_head]
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
