"""Gains over a reference: datasets down, heads and layer sets by colour and marker."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from featcache.probing.plots.style import (
    FILLS,
    MARKERS,
    NEUTRAL,
    PALETTE,
    legend_height,
    marker_style,
    new_figure,
    style,
)
from featcache.probing.report.groups import LESS_IS_BETTER, NO_FRACTION
from featcache.probing.report.numbers import factor
from featcache.probing.report.pivot import Pivot


def gains_figure(pivot: Pivot, title: str, reference: str) -> Figure:
    """Draw the differences of a pivot, and a row for their mean.

    A thin line is the 95 % interval over the same test images, a thick one the deviation over seeds.

    Colour and fill say which head and tokens, the marker which layers, if there are several sets of them.

    Args:
        pivot: differences, in the unit of their score.
        title: above.
        reference: what they are differences from.
    """
    several = len({place.model for place in pivot.places}) > 1
    words = pivot.preprocessing
    rows = [
        ", ".join(
            [place.dataset, *([place.model] if several else []), *filter(None, [words.get(place.cache_key)])]
        )
        for place in pivot.places
    ]
    if pivot.means:
        rows.append("mean")
    spread = 0.7 / max(1, len(pivot.columns))
    looks = _looks(pivot.columns)
    with style():
        height = max(
            1.9, (0.12 * len(pivot.columns) + 0.1) * len(rows) + 0.9, legend_height(len(pivot.columns))
        )
        figure = new_figure(5.6, height, title)
        axes = figure.subplots()
        axes.axvline(0, color=NEUTRAL, linewidth=0.8)
        for index, column in enumerate(pivot.columns):
            shift = (index - (len(pivot.columns) - 1) / 2) * spread
            points = [
                (place, cell)
                for place, key in enumerate(pivot.places)
                if (cell := pivot.cells.get((key, column))) is not None
            ]
            x = [factor(cell.score) * cell.mean for _, cell in points]
            y = [place + shift for place, _ in points]
            errors = [factor(cell.score) * (cell.deviation or 0.0) for _, cell in points]
            intervals = [
                (factor(cell.score) * cell.interval[0], factor(cell.score) * cell.interval[1])
                if cell.interval is not None
                else (value, value)
                for value, (_, cell) in zip(x, points, strict=True)
            ]
            axes.hlines(
                y,
                [low for low, _ in intervals],
                [high for _, high in intervals],
                looks[column]["color"],
                linewidth=0.7,
            )
            if column in pivot.means:
                x.append(factor(points[0][1].score) * pivot.means[column])  # means are of one score
                y.append(len(pivot.places) + shift)
                errors.append(0.0)
            axes.errorbar(
                x, y, xerr=errors, linestyle="", **looks[column], markersize=4.8, elinewidth=1.8, label=column
            )
        for line in range(1, len(rows)):
            axes.axhline(line - 0.5, color=NEUTRAL, linewidth=0.3, alpha=0.6)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=6)  # differences in nats have long numbers
        axes.set_xlabel(_unit(pivot, reference))
        # Above or beside the points, never over them.
        figure.legend(loc="outside right upper", handletextpad=0.3)
        return figure


def _unit(pivot: Pivot, reference: str) -> str:
    scores = {cell.score for cell in pivot.cells.values()}
    what = "difference from" if scores <= {*NO_FRACTION} else "points over"
    return f"{what} {reference}" + ("; less is better" if scores <= {*LESS_IS_BETTER} else "")


def _looks(columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a fill for each head with its tokens, a marker for each layer set; no two columns look alike."""
    heads: dict[tuple[str, ...], int] = {}
    layer_sets = {layers: index for index, layers in enumerate(dict.fromkeys(map(_layers, columns)))}
    looks: dict[str, tuple[str, str, str]] = {}
    for column in columns:
        head, layers, *rest = column.split(" ")
        turn, place = divmod(heads.setdefault((head, *rest), len(heads)), len(PALETTE))
        # Of one layer set alone, markers have nothing to say but the head, for a copy in grey.
        shape = layer_sets[layers] if len(layer_sets) > 1 else place + turn
        own = (PALETTE[place], MARKERS[shape % len(MARKERS)], FILLS[turn % len(FILLS)])
        # More layer sets than markers, or more heads than colours and fills, take what is left.
        free = (look for look in product(PALETTE, MARKERS, FILLS) if look not in looks.values())
        looks[column] = own if own not in looks.values() else next(free, own)
    return {column: marker_style(*look) for column, look in looks.items()}


def _layers(column: str) -> str:
    return column.split(" ")[1]
