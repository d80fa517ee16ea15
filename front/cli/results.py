"""``featcache results``: what probes gave, side by side."""

from pathlib import Path

import click

from featcache.cli.options import LocalPath, output_options
from featcache.extraction.models.names import model_names
from featcache.probing.report.comparison import SCORE as PUBLISHED_SCORE
from featcache.probing.report.groups import SCORES, filter_rows, group_rows
from featcache.probing.report.tables import FORMATS, SUFFIXES, to_records
from featcache.probing.report.views import VIEWS, Against, parse_reference
from featcache.probing.results.rows import RESULTS_FILE, ResultRow, count_lines, read_rows
from featcache.probing.results.solved_rows import heads_in_results
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.files import write_atomic
from featcache.terminal.console import echo, print_document, print_json, print_table

EPILOG = """\b
Examples:
  featcache results
  featcache results --view pivot --layers all --to table.tex
  featcache results --view gains --against linear:all:cls+ap
  featcache results --view published --protocol paper
"""
FILTERS = (
    "model",
    "dataset",
    "head",
    "layers",
    "tokens",
    "tap",
    "input",
    "protocol",
    "solver",
    "shots",
    "seed",
)


def filter_options(function: click.decorators.FC) -> click.decorators.FC:
    """Add an option for every field that results are chosen by."""
    for name in reversed(FILTERS):
        text = "One of them; may be repeated." if name == "layers" else "One, or a list; may be repeated."
        function = click.option(f"--{name}", multiple=True, metavar="NAME", help=text)(function)
    return function


def chosen_rows(folder: Path, given: "dict[str, tuple[str, ...]]") -> list[ResultRow]:
    """Return the rows of a folder of results that the options choose.

    Raises:
        RequestError: there are none.
    """
    rows = read_rows(folder)
    if not rows:
        what = "no results that this version can read" if (folder / RESULTS_FILE).exists() else "no results"
        raise RequestError(f"{folder} holds {what}; `featcache probe --out {folder}` makes some")
    unread = count_lines(folder) - len(rows)
    if unread:
        what = "1 line" if unread == 1 else f"{unread} lines"
        echo(f"note: {what} of {folder / RESULTS_FILE}, torn or of another version, passed over", err=True)
    known = {row.model for row in rows}
    criteria = {
        # A list of layers is one name.
        name: list(values) if name == "layers" else [part for value in values for part in value.split(",")]
        for name, values in given.items()
    }
    # A model has several names, one of which is in the results.
    criteria["model"] = [
        next((alias for alias in model_names(name) if alias in known), name) for name in criteria["model"]
    ]
    criteria["head"] = heads_in_results(criteria["head"], criteria["solver"])
    return filter_rows(rows, criteria)


@click.command("results", epilog=EPILOG)
@click.argument("folder", type=LocalPath(file_okay=False), default="featcache-results")
@click.option(
    "--view",
    default="summary",
    show_default=True,
    metavar="VIEW",
    help="summary: a row for each head over its seeds; runs: each seed; pivot: datasets x heads; gains: the same over "
    "--against, with significance; published: next to the paper's scores.",
)
@click.option(
    "--score", default=SCORES[0], show_default=True, help=f"Which score: {', '.join(SCORES)}.", metavar="NAME"
)
@click.option(
    "--against",
    metavar="HEAD:LAYERS:TOKENS",
    help="What gains are taken over.  [default: linear:last:cls]",
)
@filter_options
@click.option("--format", "form", metavar="FORMAT", help=f"{', '.join(FORMATS)}.  [default: as --to ends]")
@click.option("--to", type=LocalPath(dir_okay=False), help="Write into this file instead.")
@output_options
def results_command(
    folder: Path,
    view: str,
    score: str,
    against: str | None,
    form: str | None,
    to: Path | None,
    as_json: bool,
    **given: tuple[str, ...],
) -> None:
    """Show what probes gave: filtered, pivoted, compared, as a table for people or for a paper.

    FOLDER is what was given to `featcache probe --out`.  [default: featcache-results]
    """
    if view not in VIEWS:
        raise UnknownNameError("view", view, VIEWS)
    write_as = _format(form, to)
    if as_json and write_as is not None:
        raise RequestError(
            "--json prints for programs, --to and --format are for tables: leave one of them out"
        )
    check_view(view, score, against)
    reference = parse_reference(against)
    rows = chosen_rows(folder, given)
    groups = group_rows(rows, score)
    if not groups:
        raise RequestError(f"no result has the score {score}")
    if as_json and view == "runs":
        print_json([row.to_dict() for group in groups for row in group.rows])
        return
    table = VIEWS[view](groups, Against(reference, group_rows(read_rows(folder), score)))
    if as_json:
        print_json(to_records(table))
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


def check_view(view: str, score: str, against: str | None) -> None:
    """Refuse options that a view would ignore.

    Raises:
        RequestError: an option has no effect on the view; the message names the option and its views.
    """
    if against is not None and view not in ("summary", "gains"):
        raise RequestError(
            f"--against is for --view gains and summary, and --view {view} shows no gains; leave it out"
        )
    if view == "published" and score not in (SCORES[0], PUBLISHED_SCORE):
        raise RequestError(
            f"--view published compares {PUBLISHED_SCORE}, the paper's score; leave --score {score} out"
        )


def _format(form: str | None, to: Path | None) -> str | None:
    if form is not None and form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    if form is None and to is not None:
        if to.suffix not in SUFFIXES:
            raise RequestError(f"{to} ends in none of {', '.join(SUFFIXES)}; say --format")
        return SUFFIXES[to.suffix]
    return form
