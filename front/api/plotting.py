"""`featcache.plot`: results as figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import field, frozen

from featcache.api.results import FOLDER, OUT, ResultRequest, as_values, chosen
from featcache.api.signatures import takes_parameters_of
from featcache.probing.report.groups import SCORES
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.home import expanded
from featcache.store.parameters import FOLDER as FOLDER_FORM
from featcache.store.parameters import PROGRESS, as_optional_path, as_path, parameter
from featcache.store.progress import Reporter
from featcache.terminal.console import ConsoleReporter


@frozen(kw_only=True)
class PlotRequest(ResultRequest):
    """Which figures to draw, and of which results."""

    kind: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "gains over the reference; shots: scores from few samples; attention per layer and token kind; attention-by-class; "
            "curves of the training loss; sweep; calibration.",
            "--kind",
            metavar="KIND",
            repeated=True,
            several=True,
            default="all",
        ),
    )
    to: Path | None = field(
        default=None,
        converter=as_optional_path,
        metadata=parameter("Folder of the plots.", "--to", form=FOLDER_FORM, default="plots in FOLDER"),
    )


@frozen(kw_only=True)
class PlotCall(PlotRequest):
    """A call of `featcache.plot`."""

    out: Path = field(  # type: ignore[assignment]  # the default is converted too
        default=FOLDER, converter=as_path, kw_only=False, metadata=OUT
    )
    progress: bool = field(default=True, metadata=PROGRESS)


@takes_parameters_of(PlotCall)
def plot(call: PlotCall) -> list[Path]:
    """Draw results, as PNG and SVG: in one style, for print and for color-blind readers.

    Returns:
        The files that were written, two for each figure.

    Raises:
        RequestError: there is nothing to plot, or an argument has no effect on the plots.
        UnknownNameError: a kind, a score or a value does not exist.
        CacheError: a file of a head is damaged.

    Example:
        >>> featcache.plot(kind="gains")  # doctest: +SKIP
    """
    reporter = ConsoleReporter(quiet=not call.progress)
    return [path for pair in draw_all(expanded(call.out), call, reporter) for path in pair]


def draw_all(folder: Path, request: PlotRequest, reporter: Reporter) -> Iterator[list[Path]]:
    """Draw figures, and yield the files of each as soon as they are written.

    Args:
        folder: of the results.
        request: the figures and results.
        reporter: receives messages.

    Raises:
        RequestError, UnknownNameError, CacheError: as for `plot`.
    """
    from featcache.probing.plots.collect import draw  # imports matplotlib, which is slow
    from featcache.probing.plots.style import save

    kinds = _plot_names(request.kind)
    if request.against is not None and "gains" not in kinds:
        raise RequestError(f"--against is for --kind gains, and not for {', '.join(kinds)}; leave it out")
    if request.score != SCORES[0] and not {"gains", "shots"} & {*kinds}:
        raise RequestError(
            f"--score is for --kind gains and shots, and not for {', '.join(kinds)}; leave it out"
        )
    found = chosen(folder, request, reporter)
    into = folder / "plots" if request.to is None else expanded(request.to)
    into.mkdir(parents=True, exist_ok=True)
    drawn = False
    for kind in kinds:
        for stem, figure in draw(kind, folder, found.groups, found.against):
            drawn = True
            yield save(figure, into / stem)
    if not drawn:
        raise RequestError(f"nothing to plot: the results that are chosen hold no {' or '.join(kinds)}")


def _plot_names(named: Sequence[str]) -> list[str]:
    """Return the requested plots; all if none is named.

    Raises:
        UnknownNameError: a plot does not exist.
    """
    from featcache.probing.plots.collect import KINDS

    kinds = [part.strip() for value in named for part in value.split(",") if part.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of plot", kind, KINDS)
    return kinds or list(KINDS)
