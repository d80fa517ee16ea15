"""A sweep as a small heatmap: learning rates down, weight decays across, a panel for each dropout; one setting alone as a curve."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from featcache.probing.plots.style import PALETTE, colour_bar, heatmap, new_figure, number_log_ticks, style
from featcache.probing.results.records import SweepRecord

ROLES = ("learning_rate", "weight_decay", "dropout")
"""Rows, columns and panels, where a sweep has these; other settings follow in their own order."""

Value = float | str


def sweep_figure(record: SweepRecord, title: str) -> Figure:
    """Draw what every trial reached on held-out samples, in percent; what was chosen has a frame or a ring.

    Of settings beyond the third, the best value is drawn.
    """
    lost = sum(not np.isfinite(trial.validation) for trial in record.trials)
    if lost:
        title += f"\n{lost} of {len(record.trials)} diverged and are not drawn"
    names = _varied(record)
    if len(names) == 1 and not any(isinstance(value, str) for value in _values(record, names[0])):
        return _curve(record, names[0], title)
    names = [*names[:3], *[""] * (3 - len(names))]
    values = [_values(record, name) for name in names]
    values[0].reverse()
    places = [
        tuple(of.index(trial.settings.get(name, "")) for name, of in zip(names, values, strict=True))
        for trial in record.trials
    ]
    grid = np.full([len(of) for of in values], np.nan)
    for place, trial in zip(places, record.trials, strict=True):
        grid[place] = np.fmax(grid[place], 100 * trial.validation)
    return _heatmaps(record, grid, names, values, places[record.chosen], title)


def _heatmaps(
    record: SweepRecord,
    grid: npt.NDArray[np.float64],
    names: Sequence[str],
    values: Sequence[Sequence[Value]],
    chosen: tuple[int, ...],
    title: str,
) -> Figure:
    rows, columns, panels = ([_text(value) for value in of] for of in values)
    with style():
        width = max(2.8, len(panels) * (0.38 * len(columns) + 0.5) + 1.2)
        title += f"\nheld-out {_words(record.score)}, %; framed: chosen"
        figure = new_figure(width, 0.3 * len(rows) + 1.3, title)
        drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        known = grid[np.isfinite(grid)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        for panel, axes in enumerate(drawn):
            image = heatmap(axes, grid[:, :, panel], columns, rows, low=low, high=high, numbers=".1f")
            axes.set_xlabel(_words(names[1]))
            axes.tick_params(axis="x", labelrotation=45 if len(columns) > 4 else 0)
            if len(panels) > 1:
                axes.set_title(f"{_words(names[2])} {panels[panel]}")
            if panel == chosen[2]:
                corner = chosen[1] - 0.5, chosen[0] - 0.5
                axes.add_patch(
                    Rectangle(corner, 1, 1, fill=False, edgecolor=PALETTE[1], linewidth=1.8, clip_on=False)
                )
        drawn[0].set_ylabel(_words(names[0]))
        colour_bar(figure, image, list(drawn), "")
        return figure


def _curve(record: SweepRecord, name: str, title: str) -> Figure:
    with style():
        figure = new_figure(3.4, 2.1, title)
        axes = figure.subplots()
        x = np.array([float(trial.settings[name]) for trial in record.trials])
        y = np.array([100 * trial.validation for trial in record.trials])
        order = np.argsort(x)
        axes.plot(x[order], y[order], marker="o", markersize=3, color=PALETTE[0])
        at = record.chosen
        axes.plot(x[at], y[at], marker="o", markersize=8, fillstyle="none", color=PALETTE[1])
        if x.min() > 0 and x.max() > 20 * x.min():
            axes.set_xscale("log")
            number_log_ticks(axes.xaxis)
        axes.set_xlabel(_words(name))
        axes.set_ylabel(f"held-out {_words(record.score)}, %")
        return figure


def _varied(record: SweepRecord) -> list[str]:
    """The settings with more than one value, those of `ROLES` first."""
    names = [name for name in record.trials[0].settings if len(_values(record, name)) > 1]
    return sorted(names, key=lambda name: ROLES.index(name) if name in ROLES else len(ROLES))


def _values(record: SweepRecord, name: str) -> list[Value]:
    """All values of a setting: numbers in their order, words in that of the trials."""
    values = list(dict.fromkeys(trial.settings.get(name, "") for trial in record.trials))
    return values if any(isinstance(value, str) for value in values) else sorted(values)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _words(name: str) -> str:
    return name.replace("_", " ")
