"""Datasets x heads: scores, or differences from a reference such as the linear probe on the last class token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import NamedTuple

from featcache.probe.report.groups import LESS_IS_BETTER, SHOWN, Group, repetitions, settings
from featcache.probe.report.significance import holm, paired_p_value
from featcache.probe.table import TableRow
from featcache.store.errors import RequestError

BASELINE = TableRow("linear", "last", "cls")
ORDER = (*SHOWN, "setup")


class Place(NamedTuple):
    """A row of a pivot: a dataset seen through a backbone."""

    dataset: str
    model: str
    cache_key: str


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


def pivot_scores(groups: Sequence[Group]) -> Pivot:
    """Put scores side by side."""
    return _pivot(groups, lambda group: Cell(group.mean, group.deviation, score=group.score))


def differences(groups: Sequence[Group], every: Sequence[Group], reference: TableRow) -> dict[int, Cell]:
    """Compare groups with a reference, paired over the seeds that both have.

    Args:
        groups: what is compared, from `group_rows`.
        every: all groups of the results, among which the reference is looked for.
        reference: head, layers and tokens of what to compare with; trained by the same protocol where it can be.

    Returns:
        By the ``id`` of a group; the reference itself and what has none are left out.

    Raises:
        RequestError: no result is the reference, or none is left to compare with it.
    """
    references = [group for group in every if _is(group, reference)]
    if not references:
        raise RequestError(f"the results do not hold {reference}, which differences are taken from")
    compared: dict[int, list[float]] = {}
    for group in groups:
        other = _reference_of(group, references)
        if other is not None and other.rows != group.rows:
            shared = group.by_seed.keys() & other.by_seed.keys()
            if shared:
                compared[id(group)] = repetitions(
                    {seed: group.by_seed[seed] - other.by_seed[seed] for seed in shared}
                )
    if not compared:
        raise RequestError(f"no result can be compared with {reference}: same cache and seeds are needed")
    tests = {key: paired_p_value(values) for key, values in compared.items()}
    p_values = holm({key: p for key, p in tests.items() if p is not None})
    return {
        key: Cell(
            mean(values),
            stdev(values) if len(values) > 1 else None,
            p_values.get(key),
            score=next(group.score for group in groups if id(group) == key),
        )
        for key, values in compared.items()
    }


def pivot_differences(
    groups: Sequence[Group], every: Sequence[Group], reference: TableRow = BASELINE
) -> Pivot:
    """Put `differences` side by side; arguments and errors as there."""
    cells = differences(groups, every, reference)
    return _pivot([group for group in groups if id(group) in cells], lambda group: cells[id(group)])


def place_of(group: Group) -> Place:
    """The row of a pivot that a group belongs to."""
    return Place(group.first.dataset, group.first.model, group.first.cache_key)


def column_names(groups: Sequence[Group]) -> dict[int, str]:
    """The name of every group's column, by ``id``: head, layers and tokens, and the settings in which namesakes differ."""
    namesakes: dict[tuple[Place, str], list[Group]] = {}
    for group in groups:
        namesakes.setdefault((place_of(group), group.name), []).append(group)
    differ: dict[str, set[str]] = {}
    for (_, name), same in namesakes.items():
        differ.setdefault(name, set()).update(telling_settings(same))
    return {
        id(group): " ".join(
            [group.name, *_values(group, [one for one in ORDER if one in differ[group.name]])]
        )
        for group in groups
    }


def telling_settings(groups: Sequence[Group]) -> list[str]:
    """The settings that tell groups apart, and no more: one that follows from others does not count."""
    telling: list[str] = []
    number = min(1, len(groups))
    for setting in ORDER:
        found = len({settings(group.first, (*telling, setting)) for group in groups})
        if found > number:
            telling.append(setting)
            number = found
    return telling


def _values(group: Group, names: Sequence[str]) -> list[str]:
    values = zip(names, settings(group.first, names), strict=True)
    units = {"shots": "shots", "folds": "folds"}
    return [
        f"{value} {units[name]}" if name in units else str(value)
        for name, value in values
        if value is not None
    ]


def _is(group: Group, wanted: TableRow) -> bool:
    tokens = sorted((wanted.tokens or "").replace("+", ",").split(","))
    first = group.first
    return (first.head, first.layers, sorted(first.tokens)) == (wanted.head, wanted.layers, tokens)


def _reference_of(group: Group, references: Sequence[Group]) -> Group | None:
    """The reference on the same cache that is nearest to how a group was trained."""
    same = [other for other in references if place_of(other) == place_of(group)]
    alike = ("tap", "shots", "protocol", "folds", "precision", "solver", "input")
    wanted = settings(group.first, alike)

    def agreement(other: Group) -> tuple[bool, ...]:
        return tuple(a == b for a, b in zip(settings(other.first, alike), wanted, strict=True))

    return max(same, key=agreement, default=None)


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
    return Pivot(places, columns, cells, means, len(whole))
