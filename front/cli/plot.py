"""``featcache plot``: results as figures."""

from pathlib import Path

import click

from featcache.api.plotting import draw_all
from featcache.api.results import FOLDER
from featcache.cli.options import LocalPath, output_options
from featcache.cli.results import filter_options
from featcache.probing.report.groups import SCORES
from featcache.terminal.console import ConsoleReporter, echo, print_json

EPILOG = """\b
Examples:
  featcache plot
  featcache plot --kind gains --layers all --layers last
  featcache plot --kind attention,attention-by-class --dataset photos --head attentive
"""


@click.command("plot", epilog=EPILOG)
@click.argument("folder", type=LocalPath(file_okay=False), default=FOLDER)
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
    paths: list[Path] = []
    for files in draw_all(folder, named, score, against, given, to, ConsoleReporter()):
        paths += files
        if not as_json:
            echo(f"{files[-2]}, {files[-1].suffix[1:]}")
    if as_json:
        print_json([str(path) for path in paths])
