"""Datasets x heads: scores, or differences from a reference such as the linear probe on the last class token."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from featcache.probing.inputs.selection import view_words
from featcache.probing.report.columns import Place, column_names, place_of
from featcache.probing.report.groups import LESS_IS_BETTER, Group, repetitions, settings
from featcache.probing.report.paired_images import PAIRED_SCORES, ImageDifference, PairedImages
from featcache.probing.report.preprocessing import words_of_groups
from featcache.probing.report.reference import SOLVED_PROBE, Reference
from featcache.probing.report.significance import holm, paired_p_value, spread
from featcache.probing.requests.request import ADAMW
from featcache.store.errors import RequestError

SIGNIFICANT = 0.05
Key = tuple[Place, str]
"""Row and column of a cell."""


@dataclass(frozen=True)
class Cell:
    """One number of a pivot, in the unit of its score."""

    mean: float
    deviation: float | None
    """Over seeds; None for a single one."""
    p_value: float | None = None
    """Of a difference, corrected for all comparisons that were made together: the larger one of the test over the same test images and the
    paired test over seeds, as far as each can be made."""
    interval: tuple[float, float] | None = None
    """The 95 % interval over test images; None where there is none."""
    tied: bool = False
    """Whether it cannot be told from the best of its row: the difference may be one of test images."""
    best: bool = False
    """Whether it is the best of its row."""
    score: str = ""
    """What it is a number of."""
    note: str = ""
    """Of a difference: what its reference does not have in common, or why it was not tested over images."""
    alike: bool = True
    """Of a difference: whether the reference has the protocol, input and view that were looked for."""


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


def pivot_scores(groups: Sequence[Group], images: PairedImages | None = None) -> Pivot:
    """Put scores side by side; with the predictions of `images`, scores that tie with the best of their row are marked."""
    return _pivot(
        groups,
        lambda group: Cell(group.mean, group.deviation, score=group.score, interval=group.image_interval),
        images,
    )


def differences(
    groups: Sequence[Group],
    every: Sequence[Group],
    reference: Reference,
    images: PairedImages | None = None,
) -> dict[int, Cell]:
    """Compare groups with a reference, paired over the seeds that both have, and over the same test images.

    Args:
        groups: what is compared, from `group_rows`.
        every: all groups of the results, among which the reference is looked for.
        reference: what to compare with; trained on as many samples of each class, and by the same protocol where it can be: the
            note of a cell says where not.
        images: the predictions of test images; None compares over seeds alone.

    Returns:
        By the ``id`` of a group; the reference itself and what has none are left out.

    Raises:
        RequestError: no result is the reference, or none is left to compare with it.
    """
    references = [group for group in every if reference.matches(group)]
    if not references:
        raise RequestError(
            f"the results do not hold {reference}, which differences are taken from; `featcache probe {reference.remedy}` adds it, "
            "and --against names another reference"
        )
    compared: dict[int, list[float]] = {}
    notes: dict[int, str] = {}
    unlike: set[int] = set()
    over_images: dict[int, ImageDifference] = {}
    for group in groups:
        other = _reference_of(group, references, reference)
        if other is not None and other.rows != group.rows:
            shared = group.by_seed.keys() & other.by_seed.keys()
            if shared:
                compared[id(group)] = repetitions(
                    {seed: group.by_seed[seed] - other.by_seed[seed] for seed in shared}
                )
                notes[id(group)] = _note(group, other, reference)
                if notes[id(group)]:
                    unlike.add(id(group))
                found = None if images is None else images.compare(group, other)
                if found is not None:
                    over_images[id(group)] = found
                elif images is not None and group.score in PAIRED_SCORES:
                    notes[id(group)] = notes[id(group)] or (
                        f"{group.name}: no predictions of the same test images beside the head and its reference, so the difference "
                        "is tested over seeds alone"
                    )
    if not compared:
        raise RequestError(
            f"no result can be compared with {reference}: same cache, score, number of shots and seeds are needed"
        )
    tests = {key: paired_p_value(values) for key, values in compared.items()}
    p_values = holm({key: p for key, p in tests.items() if p is not None})
    p_images = holm({key: found.p_value for key, found in over_images.items()})

    def cell(key: int, values: list[float]) -> Cell:
        known = [p for p in (p_values.get(key), p_images.get(key)) if p is not None]
        found = over_images.get(key)
        return Cell(
            mean(values),
            spread(values),
            max(known, default=None),
            None if found is None else (found.low, found.high),
            score=next(group.score for group in groups if id(group) == key),
            note=notes[key],
            alike=key not in unlike,
        )

    return {key: cell(key, values) for key, values in compared.items()}


def pivot_differences(
    groups: Sequence[Group],
    every: Sequence[Group],
    reference: Reference = SOLVED_PROBE,
    images: PairedImages | None = None,
) -> Pivot:
    """Put `differences` side by side; arguments and errors as there."""
    cells = differences(groups, every, reference, images)
    return _pivot([group for group in groups if id(group) in cells], lambda group: cells[id(group)], images)


def _reference_of(group: Group, references: Sequence[Group], reference: Reference) -> Group | None:
    """The reference on the same cache and as many shots that is nearest to how a group was trained."""

    same = [other for other in references if _needed(other) == _needed(group)]
    alike = ("tap", "views", "protocol", "folds", "precision", "solver", "input")
    wanted = settings(group.first, alike)

    def agreement(other: Group) -> tuple[bool, ...]:
        same_settings = (a == b for a, b in zip(settings(other.first, alike), wanted, strict=True))
        return reference.has_usual_input(other), reference.prefers(other), *same_settings

    return max(same, key=agreement, default=None)


def _needed(group: Group) -> tuple[object, ...]:
    """What a reference has to have in common."""
    return place_of(group), group.first.shots, group.score


def _note(group: Group, found: Group, reference: Reference) -> str:
    if not reference.prefers(found):
        row = found.first
        return (
            f"{reference} is on {row.input}, {view_words(row.views)}, where none is on l2 and the plain view"
        )
    own, other = group.first.protocol, found.first.protocol
    # A solution depends on a protocol by the held-out samples alone.
    if own == other or found.first.solver != ADAMW:
        return ""
    return (
        f"where the protocol {own} has no reference, its runs are compared with that of the protocol {other}"
    )


def _ties(row: Mapping[Key, Group], cells: Mapping[Key, Cell], images: PairedImages) -> list[Key]:
    """Return the cells of a row that the best one is not significantly better than, over the same test images (Holm)."""
    best = next((key for key in row if cells[key].best), None)
    if best is None:
        return []
    found = {key: images.compare(row[best], group) for key, group in row.items() if not cells[key].best}
    p_values = holm({key: one.p_value for key, one in found.items() if one is not None})
    return [key for key, p in p_values.items() if p >= SIGNIFICANT]


def _pivot(groups: Sequence[Group], cell: Callable[[Group], Cell], images: PairedImages | None) -> Pivot:
    names = column_names(groups)
    places = list(dict.fromkeys(place_of(group) for group in groups))
    columns = list(dict.fromkeys(names[id(group)] for group in groups))
    cells = {(place_of(group), names[id(group)]): cell(group) for group in groups}
    for place in places:
        row = [key for key in cells if key[0] == place]
        best = (min if cells[row[0]].score in LESS_IS_BETTER else max)(cells[key].mean for key in row)
        for key in row:
            cells[key] = replace(cells[key], best=len(row) > 1 and cells[key].mean == best)
        if images is not None:
            of_row = {(place, names[id(group)]): group for group in groups if place_of(group) == place}
            for key in _ties(of_row, cells, images):
                cells[key] = replace(cells[key], tied=True)
    whole = [place for place in places if all((place, column) in cells for column in columns)]
    # Scores of different kinds have no mean.
    alike = len(whole) > 1 and len({cell.score for cell in cells.values()}) == 1
    means = (
        {column: mean(cells[place, column].mean for place in whole) for column in columns} if alike else {}
    )
    return Pivot(places, columns, cells, means, len(whole), words_of_groups(groups))
