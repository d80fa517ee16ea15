"""``featcache plot``: results as figures."""

from pathlib import Path

import click

from featcache.api.plotting import PlotRequest, draw_all
from featcache.api.results import FOLDER
from featcache.cli.options import LocalPath, output_options
from featcache.cli.request_options import options_of
from featcache.terminal.console import ConsoleReporter, echo, print_json

EPILOG = """\b
Examples:
  featcache plot
  featcache plot --kind gains --layers all --layers last
  featcache plot --kind attention,attention-by-class --dataset photos --head attentive
"""


@click.command("plot", epilog=EPILOG)
@click.argument("folder", type=LocalPath(file_okay=False), default=FOLDER)
@options_of(PlotRequest)
@output_options
def plot_command(
    folder: Path,
    request: PlotRequest,
    as_json: bool,
) -> None:
    """Draw results, as PNG and SVG: in one style, for print and for color-blind readers.

    FOLDER is what was given to `featcache probe --out`.  [default: featcache-results]
    """
    paths: list[Path] = []
    for files in draw_all(folder, request, ConsoleReporter()):
        paths += files
        if not as_json:
            echo(f"{files[-2]}, {files[-1].suffix[1:]}")
    if as_json:
        print_json([str(path) for path in paths])
