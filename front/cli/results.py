"""``featcache results``: what probes gave, side by side."""

from pathlib import Path

import click

from featcache.api.results import FOLDER, ViewRequest, check_view, chosen, make_table, require_score
from featcache.cli.options import LocalPath, output_options
from featcache.cli.request_options import options_of
from featcache.probing.report.tables import FORMATS, SUFFIXES
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.files import write_atomic
from featcache.terminal.console import ConsoleReporter, echo, print_document, print_json, print_table

EPILOG = """\b
Examples:
  featcache results
  featcache results --view pivot --layers all --to table.tex
  featcache results --view gains --against linear:all:cls+ap
  featcache results --view published --protocol paper
"""


@click.command("results", epilog=EPILOG)
@click.argument("folder", type=LocalPath(file_okay=False), default=FOLDER)
@options_of(ViewRequest)
@click.option("--format", "form", metavar="FORMAT", help=f"{', '.join(FORMATS)}.  [default: as --to ends]")
@click.option("--to", type=LocalPath(dir_okay=False), help="Write into this file instead.")
@output_options
def results_command(
    folder: Path,
    request: ViewRequest,
    form: str | None,
    to: Path | None,
    as_json: bool,
) -> None:
    """Show what probes gave: filtered, pivoted, compared, as a table for people or for a paper.

    FOLDER is what was given to `featcache probe --out`.  [default: featcache-results]
    """
    check_view(request)
    write_as = _format(form, to)
    if as_json and write_as is not None:
        raise RequestError(
            "--json prints for programs, --to and --format are for tables: leave one of them out"
        )
    found = chosen(folder, request, ConsoleReporter())
    require_score(found, request.score)
    if as_json and request.view == "runs":
        print_json([row.to_dict() for group in found.groups for row in group.rows])
        return
    table = make_table(found, request.view)
    if as_json:
        print_json(table.to_records())
        for note in table.notes:
            echo(note, err=True)
    elif write_as is None:
        print_table(table.columns, table.cells(), numeric=table.numeric)
        for note in table.notes:
            echo(note)
    elif to is None:
        print_document(FORMATS[write_as](table))
    else:
        write_atomic(to, FORMATS[write_as](table).encode())
        echo(f"written: {to}", err=True)


def _format(form: str | None, to: Path | None) -> str | None:
    if form is not None and form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    if form is None and to is not None:
        if to.suffix not in SUFFIXES:
            raise RequestError(f"{to} ends in none of {', '.join(SUFFIXES)}; say --format")
        return SUFFIXES[to.suffix]
    return form
