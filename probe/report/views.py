"""What `featcache results` can show: runs, groups over seeds, datasets x heads, and gains."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from featcache.probing.report.columns import SETUP, SHOWN, Place, asked, column_names, telling_settings
from featcache.probing.report.comparison import beside_published
from featcache.probing.report.groups import LESS_IS_BETTER, NO_FRACTION, Group, settings
from featcache.probing.report.numbers import number
from featcache.probing.report.paired_images import PairedImages
from featcache.probing.report.pivot import (
    Cell,
    Pivot,
    cell_notes,
    differences,
    pivot_differences,
    pivot_scores,
)
from featcache.probing.report.preprocessing import model_text, words_of_groups
from featcache.probing.report.reference import SOLVED_PROBE, TRAINED_PROBE, Reference
from featcache.probing.report.tables import INTERVALS, Interval, NoValue, Number, Table, Value
from featcache.store.errors import RequestError
from featcache.store.views import PLAIN_VIEW

STARS = (
    "* p < 0.05, ** p < 0.01: the larger p value of two paired tests, over the same test images (flipped signs, as McNemar's test) and "
    "over seeds (t-test), as far as each can be made, corrected for all comparisons of its column (Holm)"
)
TIES = "≈ (in Markdown italics, in LaTeX underlined): not significantly worse than the best of the row over the same test images (p >= 0.05, Holm)"
PLACE_SETTINGS = ("input", "protocol", "precision", "tap", "views", "shots", "folds")
"""Settings in which columns of heads may differ, which a table then says."""

OVER_IMAGES = "95 % over test images"
ALIKE = NoValue("all runs alike")
"""Shown in place of an interval for heads that no seed changes; equal scores do not make them certain."""


@dataclass(frozen=True)
class Against:
    """What gains are taken over."""

    reference: Reference
    groups: Sequence[Group]
    """All groups of the results: the reference is found even where it is not among those that are shown."""
    images: PairedImages | None = None
    """Predictions of test images, for differences over the same images; None where there are none."""


View = Callable[[Sequence[Group], Against], Table]


def summary(groups: Sequence[Group], against: Against) -> Table:
    """A row for every group of seeds, with its gains over the reference and, by default, over the trained linear probe too."""
    references = [against.reference]
    if against.reference == SOLVED_PROBE:
        references.append(TRAINED_PROBE)
    gained, notes = _gains_over(references, groups, against)
    varying, words = _varying(groups, together=True), words_of_groups(groups)
    lines: list[list[Value]] = []
    for group in groups:
        lines.append(
            [
                *_where_and_what(group, words),
                *(_setting(group, name) for name in varying),
                len(group.by_seed),
                group.test_samples,
                number(group.score, group.mean, group.deviation),
                _over_images(group),
                _interval(group),
                *(_difference(cells.get(id(group))) for cells in gained.values()),
                group.first.parameters,
                Number(sum(row.seconds for row in group.rows), decimals=1),
            ]
        )
    columns = (
        *("dataset", "model", "head", "layers", "tokens", *map(_words, varying), "runs", "test n"),
        *(score_words(groups), OVER_IMAGES, "95 % over seeds", *(reference.title for reference in gained)),
        *("parameters", "seconds"),
    )
    every = [cell for cells in gained.values() for cell in cells.values()]
    return Table(columns, lines, [*notes, *_notes(every)])


def _gains_over(
    references: Sequence[Reference], groups: Sequence[Group], against: Against
) -> tuple[dict[Reference, dict[int, Cell]], list[str]]:
    """Return the gains over each reference, and a note on each that the results lack: scores are worth showing without it."""
    found: dict[Reference, dict[int, Cell]] = {}
    notes = []
    for reference in references:
        try:
            found[reference] = differences(groups, against.groups, reference, against.images)
        except RequestError as error:
            found[reference] = {}
            if not any(reference.matches(group) for group in against.groups):
                notes.append(str(error))
    # A column for a second reference that is not there would be empty.
    return {key: cells for key, cells in found.items() if cells or key == references[0]}, notes


def runs(groups: Sequence[Group], against: Against) -> Table:
    """A row for every run."""
    varying, words = _varying(groups, together=True), words_of_groups(groups)
    lines = [
        [
            *_where_and_what(group, words),
            *(_setting(group, name) for name in varying),
            str(row.seed) if row.shots is None else f"{row.seed}, draw {row.draw}",
            number(group.score, value),
            _over_images(replace(group, rows=(row,))),
            row.test_samples,
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
        *(score_words(groups), OVER_IMAGES, "test n", "run", "parameters", "seconds"),
    )
    return Table(columns, lines)


def pivot(groups: Sequence[Group], against: Against) -> Table:
    """Datasets x heads: scores."""
    return _pivot_table(
        pivot_scores(groups, against.images),
        signed=False,
        notes=[score_words(groups) + _unit(groups, "percent"), *_comparison_notes(groups)],
    )


def gains(groups: Sequence[Group], against: Against) -> Table:
    """Datasets x heads: differences from the reference, with their significance."""
    found = pivot_differences(groups, against.groups, against.reference, against.images)
    notes = [
        f"{score_words(groups)} over {against.reference}{_unit(groups, 'points')}",
        *_notes(found.cells.values()),
        *_comparison_notes(groups),
    ]
    return _pivot_table(found, signed=True, notes=notes)


VIEWS: Mapping[str, View] = {
    "summary": summary,
    "runs": runs,
    "pivot": pivot,
    "gains": gains,
    "published": lambda groups, against: beside_published(groups, against.groups, against.images),
}


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
                number(
                    cell.score,
                    cell.mean,
                    cell.deviation,
                    cell.p_value,
                    signed=signed,
                    best=cell.best,
                    interval=cell.interval,
                    tied=cell.tied,
                )
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
    cells = found.cells.values()
    marks = [
        *([INTERVALS] if any(cell.interval for cell in cells) else []),
        *([TIES] if any(cell.tied for cell in cells) else []),
    ]
    return Table(columns, lines, list(dict.fromkeys([*notes, *marks])))


def _where_and_what(group: Group, words: Mapping[str, str]) -> list[Value]:
    first = group.first
    return [first.dataset, model_text(first, words), first.head, first.layers, "+".join(first.tokens)]


def _varying(groups: Sequence[Group], *, together: bool = False) -> list[str]:
    """Return the settings in which groups differ that have head, layers and tokens in common.

    Args:
        groups: which are looked at.
        together: also return those of `PLACE_SETTINGS` in which any two groups differ.
    """
    found = {setting for telling in telling_settings(groups).values() for setting in telling}
    if together:
        found |= {
            name for name in PLACE_SETTINGS if len({asked(group.first, (name,)) for group in groups}) > 1
        }
    if any(tuple(group.first.views) != (PLAIN_VIEW,) for group in groups):
        found.add("views")
    return [setting for setting in (*SHOWN, SETUP) if setting in found]


def _comparison_notes(groups: Sequence[Group]) -> list[str]:
    """Return notes on what differs between the columns of a table besides the heads, and on the test images of its rows."""
    names, notes = column_names(groups), []
    for setting in PLACE_SETTINGS:
        columns: dict[str, list[str]] = {}
        for group in groups:
            (value,) = asked(group.first, (setting,))
            listed = columns.setdefault("none" if value is None else str(value), [])
            if names[id(group)] not in listed:
                listed.append(names[id(group)])
        if len(columns) > 1:
            told = "; ".join(f"{value}: {', '.join(listed)}" for value, listed in columns.items())
            notes.append(f"columns differ in {_words(setting)}: {told}")
    tested = {f"{group.first.dataset} {group.test_samples}": None for group in groups}
    return [*notes, f"test images: {', '.join(tested)}"]


def _setting(group: Group, name: str) -> Value:
    (value,) = settings(group.first, (name,))
    # As text, so that no number of shots gets a comma.
    return None if value is None else str(value)


def _notes(cells: Collection[Cell]) -> list[str]:
    stars = [STARS] if any(cell.p_value is not None for cell in cells) else []
    return [*cell_notes(cells), *stars, *([INTERVALS] if any(cell.interval for cell in cells) else [])]


def _difference(cell: Cell | None) -> Number | None:
    if cell is None:
        return None
    return number(cell.score, cell.mean, cell.deviation, cell.p_value, signed=True, interval=cell.interval)


def _over_images(group: Group) -> Interval | None:
    if group.image_interval is None:
        return None
    low, high = group.image_interval
    return Interval(number(group.score, low), number(group.score, high))


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
