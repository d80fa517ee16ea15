"""What `featcache results` can show: runs, groups over seeds, datasets x heads, gains, and the published scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from featcache.probe.published import published_dataset, published_model, published_score
from featcache.probe.report.groups import LESS_IS_BETTER, NO_FRACTION, SHOWN, Group, settings
from featcache.probe.report.pivot import (
    BASELINE,
    Pivot,
    Place,
    column_names,
    pivot_differences,
    pivot_scores,
    place_of,
)
from featcache.probe.report.tables import Number, Table, Value
from featcache.probe.table import TableRow
from featcache.store.errors import RequestError

STARS = "* p < 0.05, ** p < 0.01: paired t-test over seeds, corrected for all comparisons of the table (Holm)"


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
        differences = pivot_differences(groups, against.groups, against.reference)
    except RequestError:  # no reference, no gains: the scores are worth showing all the same
        differences = None
    names, varying = column_names(groups), _varying(groups)
    lines: list[list[Value]] = []
    for group in groups:
        gain = differences.cells.get((place_of(group), names[id(group)])) if differences else None
        lines.append(
            [
                *_where_and_what(group),
                *(_setting(group, name) for name in varying),
                len(group.by_seed),
                _number(group.score, group.mean, group.deviation),
                _interval(group),
                _number(group.score, gain.mean, gain.deviation, gain.p_value, signed=True) if gain else None,
                group.first.parameters,
                Number(sum(row.seconds for row in group.rows), decimals=1),
            ]
        )
    columns = (
        *("dataset", "model", "head", "layers", "tokens", *map(_words, varying), "runs"),
        *(score_words(groups), "95 % interval", f"over {against.reference.head} {against.reference.layers}"),
        *("parameters", "seconds"),
    )
    return Table(columns, lines, _notes(differences))


def runs(groups: Sequence[Group], against: Against) -> Table:
    """A row for every run."""
    varying = _varying(groups)
    lines = [
        [
            *_where_and_what(group),
            *(_setting(group, name) for name in varying),
            row.seed if row.shots is None else f"{row.seed}, draw {row.draw}",
            _number(group.score, value),
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
    return _pivot_table(pivot_scores(groups), signed=False, notes=[score_words(groups) + _unit(groups)])


def gains(groups: Sequence[Group], against: Against) -> Table:
    """Datasets x heads: differences from the reference, with their significance."""
    found = pivot_differences(groups, against.groups, against.reference)
    notes = [f"{score_words(groups)} over {against.reference}{_unit(groups)}", *_notes(found)]
    return _pivot_table(found, signed=True, notes=notes)


def published(groups: Sequence[Group], against: Against) -> Table:
    """Next to the published scores, where backbone, dataset and head are the paper's."""
    lines: list[list[Value]] = []
    differences, notes = [], []
    for group in groups:
        first = group.first
        model, dataset = published_model(first.model), published_dataset(first.dataset)
        if group.score != "balanced_accuracy" or model is None or dataset is None:
            continue
        score = published_score(model, dataset.name, first.head, first.layers, first.tokens)
        if score is None:
            continue
        differences.append(group.mean - score)
        if dataset.test_samples not in (None, first.test_samples):
            notes.append(
                f"{first.dataset}: the test split here has {first.test_samples:,} samples, the paper's {dataset.test_samples:,}"
            )
        lines.append(
            [
                *(dataset.name, model, first.head, first.layers, "+".join(first.tokens), first.protocol),
                len(group.by_seed),
                _number(group.score, group.mean, group.deviation),
                _number(group.score, score),
                _number(group.score, group.mean - score, signed=True),
            ]
        )
    if not lines:
        raise RequestError(
            "no result has a backbone, a dataset and a head of arXiv 2601.09322, whose balanced accuracies there are to compare with"
        )
    mean = sum(differences) / len(differences)
    if len(lines) > 1:
        lines.append(
            ["mean", None, None, None, None, None, None, None, None, Number(100 * mean, signed=True)]
        )
    if any(group.first.protocol not in ("paper", "paper-parity") for group in groups):
        notes.append("the published scores are those of the protocol paper-parity")
    columns = (
        *("dataset", "model", "head", "layers", "tokens", "protocol", "runs"),
        *("balanced accuracy", "published", "difference"),
    )
    return Table(columns, lines, list(dict.fromkeys(notes)))


VIEWS: Mapping[str, View] = {
    "summary": summary,
    "runs": runs,
    "pivot": pivot,
    "gains": gains,
    "published": published,
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
        return [place.dataset, *([place.model] if several else []), *([place.cache_key] if doubled else [])]

    lines: list[list[Value]] = []
    for place in found.places:
        line = names(place)
        for column in found.columns:
            cell = found.cells.get((place, column))
            line.append(
                _number(cell.score, cell.mean, cell.deviation, cell.p_value, signed=signed, best=cell.best)
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
            + [_number(score, mean, signed=signed, best=mean == best) for mean in found.means.values()]
        )
    columns = ("dataset", *(["model"] if several else []), *(["cache"] if doubled else []), *found.columns)
    return Table(columns, lines, notes)


def _where_and_what(group: Group) -> list[Value]:
    first = group.first
    return [first.dataset, first.model, first.head, first.layers, "+".join(first.tokens)]


def _varying(groups: Sequence[Group]) -> list[str]:
    """The settings in which groups differ."""
    heads = {id(group): group.name for group in groups}
    return [
        name
        for name in SHOWN
        if any(
            len({settings(group.first, (name,)) for group in groups if heads[id(group)] == head}) > 1
            for head in set(heads.values())
        )
    ]


def _setting(group: Group, name: str) -> Value:
    (value,) = settings(group.first, (name,))
    return value if isinstance(value, str | int) else None


def _notes(differences: Pivot | None) -> list[str]:
    tested = differences is not None and any(cell.p_value is not None for cell in differences.cells.values())
    return [STARS] if tested else []


def _number(
    score: str,
    value: float,
    deviation: float | None = None,
    p_value: float | None = None,
    *,
    signed: bool = False,
    best: bool = False,
) -> Number:
    """A score as it is shown: fractions in percent, others as they are."""
    scale, decimals = (1, 4) if score in NO_FRACTION else (100, 2)
    spread = None if deviation is None else scale * deviation
    return Number(scale * value, spread, p_value, signed, best, decimals)


def _interval(group: Group) -> str | None:
    if group.interval is None:
        return None
    low, high = group.interval
    high = high if group.score in NO_FRACTION else min(1.0, high)
    return f"{_number(group.score, low).text} – {_number(group.score, high).text}"


def _unit(groups: Sequence[Group]) -> str:
    return "" if all(group.score in NO_FRACTION for group in groups) else ", in percent"


def score_words(groups: Sequence[Group]) -> str:
    """The score that groups are looked at by, for people."""
    names = {group.score for group in groups}
    return _words(names.pop()) if len(names) == 1 else "score"


def _words(name: str) -> str:
    return {"top1": "top-1", "top5": "top-5", "num_heads": "heads", "r2": "R2"}.get(
        name, name.replace("_", " ")
    )
