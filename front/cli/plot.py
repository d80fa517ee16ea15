"""``featcache plot``: results as figures."""

from pathlib import Path

import click

from featcache.cli.options import LocalPath, output_options
from featcache.cli.results import chosen_rows, filter_options
from featcache.probing.report.groups import SCORES, group_rows
from featcache.probing.report.views import Against, parse_reference
from featcache.probing.results.rows import read_rows
from featcache.store.errors import RequestError, UnknownNameError
from featcache.terminal.console import echo, print_json

EPILOG = """\b
Examples:
  featcache plot
  featcache plot --kind gains --layers all --layers last
  featcache plot --kind attention,attention-by-class --dataset photos --head attentive
"""


@click.command("plot", epilog=EPILOG)
@click.argument("folder", type=LocalPath(file_okay=False), default="featcache-results")
@click.option(
    "--kind",
    "named",
    multiple=True,
    metavar="KIND",
    help="gains over --against; shots: scores from few samples; attention per layer and token kind; attention-by-class; "
    "curves of the training loss; sweep; calibration. May be repeated, or a list.  [default: all]",
)
@click.option("--score", default=SCORES[0], show_default=True, metavar="NAME", help="Of the gains.")
@click.option(
    "--against", metavar="HEAD:LAYERS:TOKENS", help="What gains are taken over.  [default: linear:last:cls]"
)
@filter_options
@click.option(
    "--to",
    type=LocalPath(file_okay=False),
    help="Folder of the plots.  [default: plots in FOLDER]",
)
@output_options
def plot_command(
    folder: Path,
    named: tuple[str, ...],
    score: str,
    against: str | None,
    to: Path | None,
    as_json: bool,
    **given: tuple[str, ...],
) -> None:
    """Draw results, as PNG and SVG: in one style, for print and for color-blind readers.

    FOLDER is what was given to `featcache probe --out`.  [default: featcache-results]
    """
    kinds = _plot_names(named)
    if against is not None and "gains" not in kinds:
        raise RequestError(f"--against is for --kind gains, and not for {', '.join(kinds)}; leave it out")
    if score != SCORES[0] and not {"gains", "shots"} & {*kinds}:
        raise RequestError(
            f"--score is for --kind gains and shots, and not for {', '.join(kinds)}; leave it out"
        )
    reference = parse_reference(against)
    groups = group_rows(chosen_rows(folder, given), score)

    from featcache.probing.plots.collect import draw
    from featcache.probing.plots.style import save

    into = folder / "plots" if to is None else to
    into.mkdir(parents=True, exist_ok=True)
    every = Against(reference, group_rows(read_rows(folder), score))
    paths: list[Path] = []
    for kind in kinds:
        for stem, figure in draw(kind, folder, groups, every):
            paths += save(figure, into / stem)
            if not as_json:
                echo(f"{paths[-2]}, {paths[-1].suffix[1:]}")
    if not paths:
        raise RequestError(f"nothing to plot: the results that are chosen hold no {' or '.join(kinds)}")
    if as_json:
        print_json([str(path) for path in paths])


def _plot_names(named: tuple[str, ...]) -> list[str]:
    """Return the requested plots; all if none is named.

    Raises:
        UnknownNameError: a plot does not exist.
    """
    from featcache.probing.plots.collect import KINDS  # imports matplotlib, which is slow

    kinds = [part.strip() for value in named for part in value.split(",") if part.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of plot", kind, KINDS)
    return kinds or list(KINDS)
