"""`featcache.plot`: results as figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from featcache.api.results import FOLDER, Filter, chosen, texts_of
from featcache.api.types import PathLike
from featcache.probing.report.groups import SCORES
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.home import expanded
from featcache.store.progress import Reporter
from featcache.terminal.console import ConsoleReporter


def plot(
    out: PathLike = FOLDER,
    *,
    kind: str | Sequence[str] = (),
    score: str = SCORES[0],
    against: str | None = None,
    model: Filter = (),
    dataset: Filter = (),
    head: Filter = (),
    layers: Filter = (),
    tokens: Filter = (),
    tap: Filter = (),
    input: Filter = (),
    protocol: Filter = (),
    solver: Filter = (),
    shots: Filter = (),
    seed: Filter = (),
    to: PathLike | None = None,
    progress: bool = True,
) -> list[Path]:
    """Draw results, as PNG and SVG: in one style, for print and for color-blind readers.

    Args:
        out: folder of the results, as `probe` takes it.
        kind: ``gains``, ``shots``, ``attention``, ``attention-by-class``, ``curves``, ``sweep`` or ``calibration``, or several;
            all if empty.
        score: the score of gains and shots; the main score of each kind of targets by default.
        against: the reference of gains, as ``HEAD:LAYERS:TOKENS``; ``linear:last:cls`` if not given.
        model: only results of this model, or of one of these; this and the arguments below as for `results`.
        dataset: slug of the dataset's name.
        head: name of the head.
        layers: layer set or list of layers.
        tokens: token kinds, such as ``cls+ap``.
        tap: where in the blocks the tokens were taken.
        input: input stage.
        protocol: name of the protocol.
        solver: ``adamw``, ``exact`` and so on.
        shots: training samples of each class; ``all`` for runs on all of train.
        seed: seed of the run.
        to: folder of the plots; ``plots`` in `out` if not given.
        progress: show messages on stderr.

    Returns:
        The files that were written, two for each figure.

    Raises:
        RequestError: there is nothing to plot, or an argument has no effect on the plots.
        UnknownNameError: a kind, a score or a value does not exist.
        CacheError: a file of a head is damaged.

    Example:
        >>> featcache.plot(kind="gains")  # doctest: +SKIP
    """
    filters = {
        "model": model,
        "dataset": dataset,
        "head": head,
        "layers": layers,
        "tokens": tokens,
        "tap": tap,
        "input": input,
        "protocol": protocol,
        "solver": solver,
        "shots": shots,
        "seed": seed,
    }
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    folder, reporter = expanded(out), ConsoleReporter(quiet=not progress)
    into = None if to is None else expanded(to)
    return [
        path
        for pair in draw_all(folder, kinds, score, against, texts_of(filters), into, reporter)
        for path in pair
    ]


def draw_all(
    folder: Path,
    named: Sequence[str],
    score: str,
    against: str | None,
    filters: Mapping[str, Sequence[str]],
    into: Path | None,
    reporter: Reporter,
) -> Iterator[list[Path]]:
    """Draw figures, and yield the files of each as soon as they are written.

    Args:
        folder: of the results.
        named: the plots, each a name or a list with commas; all if empty.
        score: the score of gains and shots.
        against: the reference of gains.
        filters: values by field.
        into: folder of the plots; ``plots`` in `folder` if not given.
        reporter: receives messages.

    Raises:
        RequestError, UnknownNameError, CacheError: as for `plot`.
    """
    from featcache.probing.plots.collect import draw  # imports matplotlib, which is slow
    from featcache.probing.plots.style import save

    kinds = _plot_names(named)
    if against is not None and "gains" not in kinds:
        raise RequestError(f"--against is for --kind gains, and not for {', '.join(kinds)}; leave it out")
    if score != SCORES[0] and not {"gains", "shots"} & {*kinds}:
        raise RequestError(
            f"--score is for --kind gains and shots, and not for {', '.join(kinds)}; leave it out"
        )
    found = chosen(folder, filters, score, against, reporter)
    into = folder / "plots" if into is None else into
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
