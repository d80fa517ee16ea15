"""What `featcache results` can show: runs, groups over seeds, datasets x heads, and gains."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from featcache.probing.report.columns import SETUP, SHOWN, Place, telling_settings
from featcache.probing.report.comparison import beside_published
from featcache.probing.report.groups import LESS_IS_BETTER, NO_FRACTION, Group, settings
from featcache.probing.report.numbers import number
from featcache.probing.report.pivot import (
    BASELINE,
    Cell,
    Pivot,
    cell_notes,
    differences,
    pivot_differences,
    pivot_scores,
)
from featcache.probing.report.preprocessing import model_text, words_of_groups
from featcache.probing.report.tables import Interval, NoValue, Number, Table, Value
from featcache.probing.requests.tables import TableRow
from featcache.store.errors import RequestError
from featcache.store.views import PLAIN_VIEW

STARS = "* p < 0.05, ** p < 0.01: paired t-test over seeds, corrected for all comparisons of the table (Holm)"

ALIKE = NoValue("all runs alike")
"""Shown in place of an interval for heads that no seed changes; equal scores do not make them certain."""


@dataclass(frozen=True)
class Against:
    """What gains are taken over."""

    reference: TableRow
    groups: Sequence[Group]
    """All groups of the results: the reference is found even where it is not among those that are shown."""


View = Callable[[Sequence[Group], Against], Table]


def summary(groups: Sequence[Group], against: Against) -> Table:
    """A row for every group of seeds."""
    try:
        cells = differences(groups, against.groups, against.reference)
    except RequestError:  # no reference, no gains: the scores are worth showing all the same
        cells = {}
    varying, words = _varying(groups), words_of_groups(groups)
    lines: list[list[Value]] = []
    for group in groups:
        gain = cells.get(id(group))
        lines.append(
            [
                *_where_and_what(group, words),
                *(_setting(group, name) for name in varying),
                len(group.by_seed),
                number(group.score, group.mean, group.deviation),
                _interval(group),
                number(group.score, gain.mean, gain.deviation, gain.p_value, signed=True) if gain else None,
                group.first.parameters,
                Number(sum(row.seconds for row in group.rows), decimals=1),
            ]
        )
    columns = (
        *("dataset", "model", "head", "layers", "tokens", *map(_words, varying), "runs"),
        *(score_words(groups), "95 % interval", f"over {against.reference.head} {against.reference.layers}"),
        *("parameters", "seconds"),
    )
    return Table(columns, lines, _notes(cells.values()))


def runs(groups: Sequence[Group], against: Against) -> Table:
    """A row for every run."""
    varying, words = _varying(groups), words_of_groups(groups)
    lines = [
        [
            *_where_and_what(group, words),
            *(_setting(group, name) for name in varying),
            str(row.seed) if row.shots is None else f"{row.seed}, draw {row.draw}",
            number(group.score, value),
            row.run,
            row.parameters,
            Number(row.seconds, decimals=1),
        ]
        for group in groups
        for row in group.rows
        if (value := group.by_seed.get((row.draw, row.seed))) is not None
    ]
    columns = (
        *("dataset", "model", "head", "layers", "tokens", *map(_words, varying), "seed"),
        *(score_words(groups), "run", "parameters", "seconds"),
    )
    return Table(columns, lines)


def pivot(groups: Sequence[Group], against: Against) -> Table:
    """Datasets x heads: scores."""
    return _pivot_table(
        pivot_scores(groups), signed=False, notes=[score_words(groups) + _unit(groups, "percent")]
    )


def gains(groups: Sequence[Group], against: Against) -> Table:
    """Datasets x heads: differences from the reference, with their significance."""
    found = pivot_differences(groups, against.groups, against.reference)
    notes = [
        f"{score_words(groups)} over {against.reference}{_unit(groups, 'points')}",
        *_notes(found.cells.values()),
    ]
    return _pivot_table(found, signed=True, notes=notes)


VIEWS: Mapping[str, View] = {
    "summary": summary,
    "runs": runs,
    "pivot": pivot,
    "gains": gains,
    "published": lambda groups, against: beside_published(groups),
}


def parse_reference(text: str | None) -> TableRow:
    """Parse a reference such as ``attentive:all:cls+ap``; the baseline if it is not given.

    Raises:
        RequestError: it does not have three parts.
    """
    parts = [part.strip() for part in text.split(":")] if text else list(BASELINE)
    if len(parts) != 3 or not all(parts):
        raise RequestError(f"a reference is HEAD:LAYERS:TOKENS, such as linear:last:cls, not {text!r}")
    return TableRow(*parts)


def _pivot_table(found: Pivot, *, signed: bool, notes: Sequence[str]) -> Table:
    several = len({place.model for place in found.places}) > 1
    doubled = len({place[:2] for place in found.places}) < len(found.places)

    def names(place: Place) -> list[Value]:
        words = found.preprocessing.get(place.cache_key)
        cache = place.cache_key if words is None else f"{place.cache_key} ({words})"
        return [place.dataset, *([place.model] if several else []), *([cache] if doubled else [])]

    lines: list[list[Value]] = []
    for place in found.places:
        line = names(place)
        for column in found.columns:
            cell = found.cells.get((place, column))
            line.append(
                number(cell.score, cell.mean, cell.deviation, cell.p_value, signed=signed, best=cell.best)
                if cell
                else None
            )
        lines.append(line)
    if found.means:
        rest: list[Value] = [None] * (several + doubled)
        whole = found.complete == len(found.places)
        title = "mean" if whole else f"mean of the {found.complete} rows with all columns"
        score = next(iter(found.cells.values())).score
        best = (min if score in LESS_IS_BETTER else max)(found.means.values())
        lines.append(
            [title, *rest]
            + [number(score, mean, signed=signed, best=mean == best) for mean in found.means.values()]
        )
    columns = ("dataset", *(["model"] if several else []), *(["cache"] if doubled else []), *found.columns)
    return Table(columns, lines, notes)


def _where_and_what(group: Group, words: Mapping[str, str]) -> list[Value]:
    first = group.first
    return [first.dataset, model_text(first, words), first.head, first.layers, "+".join(first.tokens)]


def _varying(groups: Sequence[Group]) -> list[str]:
    """The settings in which groups differ that have head, layers and tokens in common, and the views if any is not the plain one."""
    found = {setting for telling in telling_settings(groups).values() for setting in telling}
    if any(tuple(group.first.views) != (PLAIN_VIEW,) for group in groups):
        found.add("views")
    return [setting for setting in (*SHOWN, SETUP) if setting in found]


def _setting(group: Group, name: str) -> Value:
    (value,) = settings(group.first, (name,))
    # As text, so that no number of shots gets a comma.
    return None if value is None else str(value)


def _notes(cells: Collection[Cell]) -> list[str]:
    return [*cell_notes(cells), *([STARS] if any(cell.p_value is not None for cell in cells) else [])]


def _interval(group: Group) -> Interval | NoValue | None:
    if group.alike:
        return ALIKE
    if group.interval is None:
        return None
    low, high = group.interval
    return Interval(number(group.score, low), number(group.score, high))


def _unit(groups: Sequence[Group], unit: str) -> str:
    scores = {group.score for group in groups}
    words = "" if scores <= {*NO_FRACTION} else f", in {unit}"
    return words + ("; less is better" if scores <= {*LESS_IS_BETTER} else "")


def score_words(groups: Sequence[Group]) -> str:
    """The score that groups are looked at by, for people."""
    names = {group.score for group in groups}
    return _words(names.pop()) if len(names) == 1 else "score"


def _words(name: str) -> str:
    return {"top1": "top-1", "top5": "top-5", "num_heads": "heads", "r2": "R2"}.get(
        name, name.replace("_", " ")
    )
