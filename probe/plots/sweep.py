"""A sweep as a small heatmap: learning rates down, weight decays across, a panel for each dropout; or a path of penalties."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from featcache.probe.plots.style import PALETTE, colour_bar, heatmap, new_figure, style, wrapped


@dataclass(frozen=True)
class Trial:
    """One member of a sweep, and what it reached on the held-out part, a fraction; None where it was dropped early."""

    learning_rate: float
    weight_decay: float
    dropout: float
    validation: float | None


def sweep_figure(
    trials: Sequence[Trial], chosen: Trial, title: str, score: str = "balanced accuracy"
) -> Figure:
    """Draw what every member reached on the held-out part; the chosen one has a frame."""
    rates = sorted({trial.learning_rate for trial in trials}, reverse=True)
    decays = sorted({trial.weight_decay for trial in trials})
    dropouts = sorted({trial.dropout for trial in trials})
    grid = np.full((len(dropouts), len(rates), len(decays)), np.nan)
    for trial in trials:
        if trial.validation is not None:
            place = dropouts.index(trial.dropout), rates.index(trial.learning_rate)
            grid[(*place, decays.index(trial.weight_decay))] = 100 * trial.validation
    with style():
        width = max(2.8, len(dropouts) * (0.38 * len(decays) + 0.5) + 1.2)
        figure = new_figure(width, 0.3 * len(rates) + 1.6)
        panels = figure.subplots(1, len(dropouts), sharey=True, squeeze=False)[0]
        low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
        for values, axes, dropout in zip(grid, panels, dropouts, strict=True):
            columns, rows = [f"{decay:g}" for decay in decays], [f"{rate:g}" for rate in rates]
            image = heatmap(axes, values, columns, rows, low=low, high=high, numbers=".1f")
            axes.set_xlabel("weight decay")
            axes.tick_params(axis="x", labelrotation=45 if len(decays) > 4 else 0)
            if len(dropouts) > 1:
                axes.set_title(f"dropout {dropout:g}")
            if dropout == chosen.dropout:
                corner = decays.index(chosen.weight_decay) - 0.5, rates.index(chosen.learning_rate) - 0.5
                axes.add_patch(_frame(corner))
        panels[0].set_ylabel("learning rate")
        title += f"\nheld-out {score}, %; framed: chosen"
        figure.suptitle(wrapped(title, width), x=0.01, ha="left", fontsize=8.5)
        colour_bar(figure, image, list(panels), "")
        return figure


def path_figure(
    penalties: Sequence[float],
    validation: Sequence[float],
    chosen: float,
    title: str,
    score: str = "balanced accuracy",
) -> Figure:
    """Draw what every penalty of an exact solution reached on the held-out part; the chosen one is marked."""
    with style():
        figure = new_figure(3.4, 2.3)
        axes = figure.subplots()
        order = np.argsort(penalties)
        axes.plot(
            np.asarray(penalties)[order],
            100 * np.asarray(validation)[order],
            marker="o",
            markersize=3,
            color=PALETTE[0],
        )
        best = 100 * validation[list(penalties).index(chosen)]
        axes.plot([chosen], [best], marker="o", markersize=8, fillstyle="none", color=PALETTE[1])
        axes.set_xscale("log")
        axes.set_xlabel("penalty")
        axes.set_ylabel(f"held-out {score}, %")
        axes.set_title(wrapped(title, 2.8))
        return figure


def _frame(corner: tuple[float, float]) -> Rectangle:
    return Rectangle(corner, 1, 1, fill=False, edgecolor=PALETTE[1], linewidth=1.8, clip_on=False)
