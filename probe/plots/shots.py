"""How much a head learns from few samples: its score against the samples of each class that it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from featcache.probing.plots.style import (
    FILLS,
    LINES,
    MARKERS,
    PALETTE,
    legend_height,
    marker_style,
    new_figure,
    style,
)


@dataclass(frozen=True)
class ShotsPoint:
    """A score at one number of samples."""

    shots: int
    """Samples of each class."""
    mean: float
    deviation: float | None
    """Over draws and seeds."""
    interval: tuple[float, float] | None = None
    """The 95 % interval over test images."""


def shots_figure(curves: Mapping[str, Sequence[ShotsPoint]], title: str, score: str) -> Figure:
    """Draw a line for every head; the axis of samples is logarithmic.

    A thick line at a point is the deviation over draws and seeds, a thin one the 95 % interval over test images.
    """
    with style():
        figure = new_figure(5.0, max(2.5, legend_height(len(curves))), title)
        axes = figure.subplots()
        for index, (name, points) in enumerate(curves.items()):
            ordered = sorted(points, key=lambda point: point.shots)
            bounded = [(point.shots, *point.interval) for point in ordered if point.interval is not None]
            if bounded:
                shots, low, high = zip(*bounded, strict=True)
                axes.vlines(shots, low, high, _look(index)["color"], linewidth=0.7)
            axes.errorbar(
                [point.shots for point in ordered],
                [point.mean for point in ordered],
                yerr=[point.deviation or 0.0 for point in ordered],
                **_look(index),
                markersize=4.5,
                elinewidth=1.8,
                label=name,
            )
        ticks = sorted({point.shots for points in curves.values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("training samples of each class")
        axes.set_ylabel(score)
        figure.legend(loc="outside right upper", handletextpad=0.3)
        return figure


def _look(index: int) -> dict[str, Any]:
    """Where a colour comes round again, marker, fill and line are others."""
    turn, place = divmod(index, len(PALETTE))
    look = marker_style(PALETTE[place], MARKERS[(place + turn) % len(MARKERS)], FILLS[turn % len(FILLS)])
    return {**look, "linestyle": LINES[turn % len(LINES)]}
