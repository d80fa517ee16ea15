"""Datasets x heads: scores, or differences from a reference such as the linear probe on the last class token."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from featcache.probing.report.columns import Place, column_names, place_of
from featcache.probing.report.groups import LESS_IS_BETTER, Group, repetitions, settings
from featcache.probing.report.preprocessing import words_of_groups
from featcache.probing.report.significance import holm, paired_p_value, spread
from featcache.probing.requests.tables import TableRow
from featcache.store.errors import RequestError
from featcache.store.layers import FINAL

BASELINE = TableRow("linear", "last", "cls")


@dataclass(frozen=True)
class Cell:
    """One number of a pivot, in the unit of its score."""

    mean: float
    deviation: float | None
    """Over seeds; None for a single one."""
    p_value: float | None = None
    """Of a difference: paired over seeds, corrected for all comparisons of the table."""
    best: bool = False
    """Whether it is the best of its row."""
    score: str = ""
    """What it is a number of."""
    note: str = ""
    """Of a difference: what its reference does not have in common."""


@dataclass(frozen=True)
class Pivot:
    """A table of cells."""

    places: list[Place]
    columns: list[str]
    cells: dict[tuple[Place, str], Cell]
    means: dict[str, float]
    """Of each column, over the places that have all columns; empty where there are fewer than two, or scores differ."""
    complete: int
    """How many places have all columns."""
    preprocessing: Mapping[str, str]
    """Words for the preprocessing by cache key, where two places of one model and dataset differ in it."""


def cell_notes(cells: Iterable[Cell]) -> list[str]:
    """What there is to say of cells, each once."""
    return list(dict.fromkeys(cell.note for cell in cells if cell.note))


def pivot_scores(groups: Sequence[Group]) -> Pivot:
    """Put scores side by side."""
    return _pivot(groups, lambda group: Cell(group.mean, group.deviation, score=group.score))


def differences(groups: Sequence[Group], every: Sequence[Group], reference: TableRow) -> dict[int, Cell]:
    """Compare groups with a reference, paired over the seeds that both have.

    Args:
        groups: what is compared, from `group_rows`.
        every: all groups of the results, among which the reference is looked for.
        reference: head, layers and tokens of what to compare with; trained on as many samples of each class, and by the same
            protocol where it can be: the note of a cell says where not.

    Returns:
        By the ``id`` of a group; the reference itself and what has none are left out.

    Raises:
        RequestError: no result is the reference, or none is left to compare with it.
    """
    references = [group for group in every if _is(group, reference)]
    if not references:
        raise RequestError(f"the results do not hold {reference}, which differences are taken from")
    compared: dict[int, list[float]] = {}
    notes: dict[int, str] = {}
    for group in groups:
        other = _reference_of(group, references)
        if other is not None and other.rows != group.rows:
            shared = group.by_seed.keys() & other.by_seed.keys()
            if shared:
                compared[id(group)] = repetitions(
                    {seed: group.by_seed[seed] - other.by_seed[seed] for seed in shared}
                )
                notes[id(group)] = _note(group, other)
    if not compared:
        raise RequestError(
            f"no result can be compared with {reference}: same cache, score, number of shots and seeds are needed"
        )
    tests = {key: paired_p_value(values) for key, values in compared.items()}
    p_values = holm({key: p for key, p in tests.items() if p is not None})
    return {
        key: Cell(
            mean(values),
            spread(values),
            p_values.get(key),
            score=next(group.score for group in groups if id(group) == key),
            note=notes[key],
        )
        for key, values in compared.items()
    }


def pivot_differences(
    groups: Sequence[Group], every: Sequence[Group], reference: TableRow = BASELINE
) -> Pivot:
    """Put `differences` side by side; arguments and errors as there."""
    cells = differences(groups, every, reference)
    return _pivot([group for group in groups if id(group) in cells], lambda group: cells[id(group)])


def _is(group: Group, wanted: TableRow) -> bool:
    tokens = sorted((wanted.tokens or "").replace("+", ",").split(","))
    first = group.first
    if (first.head, sorted(first.tokens)) != (wanted.head, tokens):
        return False
    # The set "last" and a list of the final layer alone are the same layer.
    return _layers(first.layers) == _layers(wanted.layers or "")


def _layers(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    return ("last",) if names == (FINAL,) else names


def _reference_of(group: Group, references: Sequence[Group]) -> Group | None:
    """The reference on the same cache and as many shots that is nearest to how a group was trained."""

    same = [other for other in references if _needed(other) == _needed(group)]
    alike = ("tap", "views", "protocol", "folds", "precision", "solver", "input")
    wanted = settings(group.first, alike)

    def agreement(other: Group) -> tuple[bool, ...]:
        return tuple(a == b for a, b in zip(settings(other.first, alike), wanted, strict=True))

    return max(same, key=agreement, default=None)


def _needed(group: Group) -> tuple[object, ...]:
    """What a reference has to have in common."""
    return place_of(group), group.first.shots, group.score


def _note(group: Group, reference: Group) -> str:
    own, other = group.first.protocol, reference.first.protocol
    if own == other:
        return ""
    return (
        f"where the protocol {own} has no reference, its runs are compared with that of the protocol {other}"
    )


def _pivot(groups: Sequence[Group], cell: Callable[[Group], Cell]) -> Pivot:
    names = column_names(groups)
    places = list(dict.fromkeys(place_of(group) for group in groups))
    columns = list(dict.fromkeys(names[id(group)] for group in groups))
    cells = {(place_of(group), names[id(group)]): cell(group) for group in groups}
    for place in places:
        row = [key for key in cells if key[0] == place]
        best = (min if cells[row[0]].score in LESS_IS_BETTER else max)(cells[key].mean for key in row)
        for key in row:
            cells[key] = replace(cells[key], best=len(row) > 1 and cells[key].mean == best)
    whole = [place for place in places if all((place, column) in cells for column in columns)]
    # Scores of different kinds have no mean.
    alike = len(whole) > 1 and len({cell.score for cell in cells.values()}) == 1
    means = (
        {column: mean(cells[place, column].mean for place in whole) for column in columns} if alike else {}
    )
    return Pivot(places, columns, cells, means, len(whole), words_of_groups(groups))
