"""Gains over the baseline: datasets down, heads and layer sets by colour and marker."""

from matplotlib.figure import Figure

from featcache.probe.plots.style import MARKERS, NEUTRAL, PALETTE, new_figure, style
from featcache.probe.report.pivot import Pivot


def gains_figure(pivot: Pivot, title: str) -> Figure:
    """Draw the differences of a pivot in points, with their deviation over seeds, and a row for their mean.

    Colour says which head and tokens, the marker which layers.
    """
    several = len({place.model for place in pivot.places}) > 1
    rows = [f"{place.dataset}, {place.model}" if several else place.dataset for place in pivot.places]
    if pivot.means:
        rows.append("mean")
    spread = 0.7 / max(1, len(pivot.columns))
    looks = _looks(pivot.columns)
    with style():
        figure = new_figure(5.6, max(1.9, (0.12 * len(pivot.columns) + 0.1) * len(rows) + 0.9), title)
        axes = figure.subplots()
        axes.axvline(0, color=NEUTRAL, linewidth=0.8)
        for index, column in enumerate(pivot.columns):
            colour, marker = looks[column]
            shift = (index - (len(pivot.columns) - 1) / 2) * spread
            points = [
                (place, cell)
                for place, key in enumerate(pivot.places)
                if (cell := pivot.cells.get((key, column))) is not None
            ]
            x = [100 * cell.mean for _, cell in points]
            y = [place + shift for place, _ in points]
            errors = [100 * (cell.deviation or 0.0) for _, cell in points]
            if column in pivot.means:
                x, y, errors = (
                    [*x, 100 * pivot.means[column]],
                    [*y, len(pivot.places) + shift],
                    [*errors, 0.0],
                )
            axes.errorbar(
                x, y, xerr=errors, fmt=marker, color=colour, markersize=4.2, elinewidth=0.9, label=column
            )
        for line in range(1, len(rows)):
            axes.axhline(line - 0.5, color=NEUTRAL, linewidth=0.3, alpha=0.6)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("points over the baseline")
        # Above or beside the points, never over them.
        figure.legend(loc="outside right upper", handletextpad=0.3)
        return figure


def _looks(columns: list[str]) -> dict[str, tuple[str, str]]:
    """A colour for each head with its tokens, a marker for each layer set."""
    heads: dict[tuple[str, ...], str] = {}
    layer_sets: dict[str, str] = {}
    looks = {}
    for column in columns:
        head, layers, *rest = column.split(" ")
        colour = heads.setdefault((head, *rest), PALETTE[len(heads) % len(PALETTE)])
        marker = layer_sets.setdefault(layers, MARKERS[len(layer_sets) % len(MARKERS)])
        looks[column] = (colour, marker)
    return looks
