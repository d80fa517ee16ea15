"""``featcache datasets``: the datasets that have a short name, and a look at any dataset."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.options import LocalPath, output_options
from featcache.cli.request_options import options_of
from featcache.extraction.provenance.summary import dataset_summary
from featcache.extraction.sources import SOURCE_TYPES, resolve_source
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.samples import labels_of
from featcache.store.catalogue import slug
from featcache.store.files import JsonObject
from featcache.store.targets import REGRESSION, UNLABELED
from featcache.terminal.console import ConsoleReporter, echo, print_json, print_table

if TYPE_CHECKING:
    from featcache.extraction.sources.listing import ListedDataset

COLUMNS = ("dataset", "name", "classes", "train", "test", "domain", "on disk")
NUMERIC = COLUMNS[2:5]
EPILOG = """\b
Examples:
  featcache datasets
  featcache datasets --only natural
  featcache datasets show flowers
  featcache datasets show csv:scans.csv --group-by patient --sheet scans.png
"""


@click.group("datasets", epilog=EPILOG, invoke_without_command=True)
@click.option("--only", default="", metavar="TEXT", help="Those with TEXT in their name or domain.")
@output_options
@click.pass_context
def datasets_command(context: click.Context, only: str, as_json: bool) -> None:
    """List the datasets that have a short name; `datasets show` looks into any dataset.

    They are fetched from the Hugging Face Hub when they are first extracted, or taken from --data DIR, or from a folder
    of their name below $FEATCACHE_DATA.
    """
    if context.invoked_subcommand is not None:
        return
    from featcache.extraction.sources.listing import (
        listed_datasets,  # what reads shards; other commands do without
    )

    found = listed_datasets(only)
    if as_json:
        print_json([one.to_dict() for one in found])
        return
    print_table(COLUMNS, [_row(one) for one in found], numeric=NUMERIC)
    echo()
    echo("one's own: " + "; ".join(kind.example for kind in SOURCE_TYPES.values()))


def _row(one: "ListedDataset") -> list[str]:
    test = "?" if one.test_images is None else str(one.test_images)
    numbers = [str(one.num_classes), str(one.train_images), test]
    return [one.alias, one.display_name, *numbers, one.domain, one.on_disk or ""]


@datasets_command.command("show", epilog=EPILOG)
@click.argument("name")
@click.option(
    "--sheet",
    type=LocalPath(dir_okay=False),
    help="Where the contact sheet goes.  [default: NAME-samples.png]",
)
@click.option("--no-sheet", is_flag=True, help="Draw none: no image is decoded.")
@options_of(DatasetOptions)
@output_options
def show_command(
    request: DatasetOptions, name: str, sheet: Path | None, no_sheet: bool, as_json: bool
) -> None:
    """Show what a dataset holds, as it would be extracted, and draw samples of it.

    NAME is an alias, or KIND:PLACE as for extract.
    """
    reporter = ConsoleReporter(quiet=as_json)
    source = resolve_source(name, request, reporter)
    document = _describe(source)
    if not no_sheet:
        path = sheet or Path(f"{slug(source.name)}-samples.png")
        document |= {"sheet": str(path), "not_decoded": _draw(source, path)}
    if as_json:
        print_json(document)
    else:
        _print(document)


def _draw(source: Source, path: Path) -> list[str]:
    from featcache.extraction.decoding.contact_sheet import contact_sheet  # Pillow

    image, problems = contact_sheet(source)
    image.save(path, "PNG")
    return problems


def _describe(source: Source) -> JsonObject:
    targets, citation = source.targets, source.citation
    labels = {name: labels_of(samples) for name, samples in source.splits.items()}
    document: JsonObject = {
        "name": source.name,
        "identity": dict(source.identity),
        "targets": targets.describe(),
        "samples": {name: len(samples) for name, samples in source.splits.items()},
        "summary": dataset_summary(source, list(source.splits)),
        "passed_over": dict(source.passed_over),
    }
    if targets.type == REGRESSION:
        document["ranges"] = {
            name: [[float(low), float(high)] for low, high in zip(part.min(0), part.max(0), strict=True)]
            for name, part in labels.items()
        }
    else:
        document["class_counts"] = {name: targets.counts(part).tolist() for name, part in labels.items()}
    return document | {
        "notes": list(source.notes),
        "licence": citation.license,
        "cite": citation.text,
        "homepage": citation.homepage,
    }


def _print(document: JsonObject) -> None:
    targets, splits = document["targets"], list(document["samples"])
    sizes = ", ".join(f"{count} {split}" for split, count in document["samples"].items())
    unlabeled = targets["kind"] == UNLABELED
    about = "no labels" if unlabeled else f"{len(targets['names'])} {_noun(targets['kind'])}"
    echo(f"{document['name']}: {sizes}; {about}")
    echo(document["summary"])
    echo()
    if targets["kind"] == REGRESSION:
        units = targets["units"] or [""] * len(targets["names"])
        rows = [
            [name, unit, *(_range(document["ranges"][split][index]) for split in splits)]
            for index, (name, unit) in enumerate(zip(targets["names"], units, strict=True))
        ]
        print_table(("target", "unit", *splits), rows)
    elif not unlabeled:
        counts = document["class_counts"]
        rows = [
            [str(index), name, *(str(counts[split][index]) for split in splits)]
            for index, name in enumerate(targets["names"])
        ]
        print_table(("label", "class", *splits), rows, numeric=("label", *splits))
    echo()
    for what in ("licence", "cite", "homepage"):
        if document[what]:
            echo(f"{what}: {document[what]}")
    for note in document["notes"]:
        echo(f"note: {note}")
    for problem in document.get("not_decoded", []):
        echo(f"note: {problem}")
    if "sheet" in document:
        echo(f"contact sheet: {document['sheet']}")


def _noun(kind: str) -> str:
    return "real values (regression)" if kind == REGRESSION else f"classes ({kind})"


def _range(ends: list[float]) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}"
