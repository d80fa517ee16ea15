"""Where attention goes: a layer a column, a token kind a row, in percent of all attention."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from featcache.probing.plots.style import colour_bar, heatmap, new_figure, style

MAX_CLASSES = 24
"""Classes that fit a page; of more, those are shown whose attention is the most unlike the average."""


def attention_figure(
    weights: npt.NDArray[np.float64], layers: Sequence[str], kinds: Sequence[str], title: str
) -> Figure:
    """Draw the attention ``[L, K]`` that all images pay to layers and token kinds; NaN where a layer has no such token."""
    with style():
        percent = 100 * weights.T
        figure = new_figure(max(3.4, 0.42 * len(layers) + 1.5), 0.36 * len(kinds) + 0.85, title)
        axes = figure.subplots()
        high = _largest(percent)
        names = [kind.upper() if len(kind) < 4 else kind for kind in kinds]
        image = heatmap(axes, percent, list(layers), names, low=0, high=high, numbers=".1f")
        axes.set_xlabel("layer")
        colour_bar(figure, image, axes, "attention, %")
        return figure


def attention_by_class_figure(
    weights: npt.NDArray[np.float64],
    layers: Sequence[str],
    kinds: Sequence[str],
    classes: Sequence[str],
    title: str,
) -> Figure:
    """Draw the attention ``[C, L, K]`` that the images of each class pay; a panel for each token kind, all on one scale.

    Classes without images, all NaN, are left out.
    """
    present = [label for label in range(len(classes)) if not np.isnan(weights[label]).all()]
    # A head whose attention is not finite shows every class in gray.
    shown, note = _most_unlike(weights, present or list(range(len(classes))))
    with style():
        percent = 100 * weights[shown]
        width = max(3.4, len(kinds) * (0.27 * len(layers) + 0.5) + 1.6)
        figure = new_figure(width, 0.19 * len(shown) + 0.95, title + note)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        high = _largest(percent)
        names = [_short(classes[label]) for label in shown]
        for index, (axes, kind) in enumerate(zip(panels, kinds, strict=True)):
            image = heatmap(axes, percent[:, :, index], list(layers), names, low=0, high=high)
            axes.set_title(kind.upper() if len(kind) < 4 else kind)
            axes.set_xlabel("layer")
        colour_bar(figure, image, list(panels), "attention, %")
        return figure


def _most_unlike(weights: npt.NDArray[np.float64], present: list[int]) -> tuple[list[int], str]:
    """The classes to show, in label order, and what to say where those are not all."""
    if len(present) <= MAX_CLASSES:
        return present, ""
    flat = np.nan_to_num(weights[present].reshape(len(present), -1))
    distance = np.abs(flat - flat.mean(0)).sum(1)
    chosen = sorted(present[place] for place in np.argsort(-distance, kind="stable")[:MAX_CLASSES])
    return chosen, f"\nthe {MAX_CLASSES} of {len(present)} classes that differ most from the average"


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _largest(percent: npt.NDArray[np.float64]) -> float:
    """Return the largest amount; 1 if none is a number, as after a training that diverged."""
    known = percent[np.isfinite(percent)]
    return float(known.max()) if len(known) else 1.0
