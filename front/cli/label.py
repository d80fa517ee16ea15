"""``featcache label``: attach labels to a cache, from a table with the ids of its samples."""

from pathlib import Path

import click

from featcache.cli.options import LocalPath, common_options
from featcache.cli.request_options import options_of
from featcache.extraction.labeling.request import LabelRequest
from featcache.store.catalogue import roots, select
from featcache.terminal.console import ConsoleReporter, echo, print_json

EPILOG = """\b
Examples:
  featcache label 0123456789ab labels.csv
  featcache label photos/vit-l-14-0123456789ab labels.csv --id path --label species
  featcache label 0123456789ab measured.csv --label "weight [kg],length [cm]" --target regression
"""


@click.command("label", epilog=EPILOG)
@click.argument("cache")
@click.argument("table", type=LocalPath(dir_okay=False))
@options_of(LabelRequest)
@common_options
def label_command(
    request: LabelRequest, cache: str, table: Path, root: tuple[Path, ...], as_json: bool
) -> None:
    """Attach labels to a cache: make another one of the same features, with the labels of a table.

    CACHE is a folder, a key or the beginning of one, or DATASET/MODEL-KEY. TABLE is a CSV file with an id and the labels of every
    sample. Files of features are hard links where the file system has them. CACHE stays as it is.
    """
    from featcache.extraction.labeling.run import attach_labels

    search = roots(root)
    result = attach_labels(select(search, cache), table, request, search, ConsoleReporter(quiet=as_json))
    if as_json:
        print_json(result.to_dict())
    elif result.cached:
        echo(f"already cached: {result.path}")
    else:
        names, kind = result.targets["names"], result.targets["kind"]
        copied = f", {result.copied_files} files copied (no hard links here)" if result.copied_files else ""
        echo(f"{result.samples} samples, {len(names)} names ({kind}){copied}")
        echo(f"cache: {result.path}")
