"""How training went: the loss of the chosen settings while they are fitted on all of train, run by run."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from matplotlib.figure import Figure

from featcache.probing.plots.style import PALETTE, new_figure, number_log_ticks, style


def curves_figure(
    losses: Mapping[tuple[int, int], tuple[Sequence[int], Sequence[float]]], title: str
) -> Figure:
    """Draw the losses ``(steps, loss)`` of every run, and the mean where their steps agree; the axis of losses is logarithmic.

    Args:
        losses: by seed and draw: updates done, and the mean loss of the mini-batches since the point before.
        title: what was trained.
    """
    with style():
        every = list(losses.values())
        alone = len(losses) == 1
        alike = len({tuple(steps) for steps, _ in every}) == 1
        if alike and not alone:
            title += f"\nthin: {len(losses)} runs, bold: their mean"
        figure = new_figure(3.6, 2.1, title)
        axes = figure.subplots()
        for steps, loss in losses.values():
            axes.plot(
                steps, loss, color=PALETTE[0], alpha=1.0 if alone else 0.35, linewidth=1.3 if alone else 0.8
            )
        if alike and not alone:
            axes.plot(every[0][0], np.mean([loss for _, loss in every], axis=0), color=PALETTE[0])
        # The losses of a training that diverged are not finite.
        known = [value for _, loss in every for value in loss if isfinite(value)]
        if known and min(known) > 0:
            axes.set_yscale("log")
            number_log_ticks(axes.yaxis, subs=(1.0, 2.0, 5.0))
        axes.set_xlabel("updates")
        axes.set_ylabel("training loss")
        return figure
