"""The one style of all plots: small enough for a column of a paper, clear in print and to colour-blind readers.

Categories differ in colour (Okabe and Ito's palette, without its yellow, which print loses) and in marker; where colours come round again,
markers are hollow, then half filled. Amounts go from light to dark in one hue, so that a grey copy keeps their order.
"""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure  # not pyplot: it keeps global state and may look for a display
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from featcache.store.files import write_atomic

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FILLS = ("full", "none", "left", "bottom")
LINES = ("-", "--", ":", "-.")
AMOUNTS = "Blues"
NEUTRAL = "#767676"
MISSING = "#e6e6e6"
TITLE_SIZE = 8.5
FALLBACK_FONTS = (
    *(
        "Noto Sans CJK JP",
        "Noto Sans CJK SC",
        "Noto Sans SC",
        "Noto Sans JP",
        "Source Han Sans",
        "WenQuanYi Zen Hei",
    ),
    *("Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Droid Sans Fallback"),
    *("Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS", "Unifont"),
)
SUFFIXES = (".png", ".svg")
_RC: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "savefig.dpi": 200,
    # Text stays text, and the same figure gives the same bytes.
    "svg.fonttype": "none",
    # A name with dollars is a name, not a formula.
    "text.parse_math": False,
    "svg.hashsalt": "featcache",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw and save in the style of the project."""
    with rc_context({**_RC, "font.family": [*_families()]}), warnings.catch_warnings():
        # A missing glyph in a PNG deserves no warning for each character, since the SVG holds the text.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


@cache
def _families() -> tuple[str, ...]:
    """Return matplotlib's own font, then installed fonts for names in scripts that this font lacks."""
    installed = fontManager.get_font_names()
    return ("DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed))


def marker_style(colour: str, marker: str, fill: str) -> dict[str, Any]:
    """What matplotlib calls the look of a marker, one of `FILLS`; what is not filled is white, so that no line shows through."""
    return {
        "color": colour,
        "marker": marker,
        "fillstyle": "full" if fill == "none" else fill,
        "markerfacecolor": "white" if fill == "none" else colour,
        "markerfacecoloralt": "white",
    }


def legend_height(entries: int) -> float:
    """Inches that a legend beside the axes takes."""
    return 0.16 * entries + 0.2


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure of a size in inches, laid out by its content; the title, wrapped, adds to the height."""
    most = int(15.5 * width)
    lines = [line for part in title.split("\n") for line in textwrap.wrap(part, most) or [""]]
    figure = Figure(figsize=(width, height + 0.15 * len(lines)), layout="constrained")
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=TITLE_SIZE)
    return figure


def save(figure: Figure, stem: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Write a figure as ``<stem>.png`` and ``<stem>.svg``, or one of them; returns the paths."""
    paths = []
    for suffix in suffixes:
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
        with style():
            figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        path = stem.with_name(stem.name + suffix)
        write_atomic(path, buffer.getvalue())
        paths.append(path)
    return paths


def number_log_ticks(axis: Axis, *, subs: Sequence[float] = (1.0,)) -> None:
    """Label a logarithmic axis with plain numbers, such as ``0.001``, at the multiples `subs` of powers of ten.

    matplotlib labels such an axis with formulas, which the style prints literally: ``$\\mathdefault{10^{-3}}$``.
    """
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def heatmap(
    axes: Axes,
    values: npt.NDArray[np.float64],
    columns: list[str],
    rows: list[str],
    *,
    low: float,
    high: float,
    numbers: str | None = None,
) -> AxesImage:
    """Draw ``values`` ``[rows, columns]``; NaN is grey.

    Args:
        axes: where.
        values: the amounts.
        columns: names below.
        rows: names at the left.
        low: the amount of the lightest colour.
        high: the amount of the darkest colour.
        numbers: format of the numbers in the cells; None for none.
    """
    from matplotlib import colormaps

    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=colormaps[AMOUNTS].with_extremes(bad=MISSING),
        vmin=low,
        vmax=max(high, low + 1e-9),
        aspect="auto",
    )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if numbers is not None:
        middle = low + 0.6 * (high - low)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value > middle else "black"
                text = format(value, numbers)
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
    return image


def colour_bar(figure: Figure, image: ScalarMappable, axes: Any, label: str) -> None:
    """Draw the scale of a heatmap beside it."""
    bar = figure.colorbar(image, ax=axes, label=label, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(width=0.6)
