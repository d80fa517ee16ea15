"""``featcache ls``: the caches there are."""

from pathlib import Path

import click

from featcache.cli.listing import COLUMNS, NUMERIC, none_found, table_row
from featcache.cli.options import common_options
from featcache.cli.remote import list_remote
from featcache.extraction.models.names import model_names
from featcache.store.catalogue import Entry, Unreadable, has_model_name, roots, scan, slug, unreadable
from featcache.store.catalogue.summary import Summary, summarize
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject
from featcache.terminal.console import echo, print_json, print_table

EPILOG = """\b
Examples:
  featcache ls
  featcache ls --root ~/caches --root /team/caches
  featcache ls s3://bucket/team --model vit-l --dataset flowers
"""


@click.command("ls", epilog=EPILOG)
@click.argument("remote", required=False)
@click.option("--model", help="Those whose model's name contains this, or that go by it otherwise.")
@click.option("--dataset", help="Those whose dataset's name contains this.")
@common_options
def ls_command(
    remote: str | None, model: str | None, dataset: str | None, root: tuple[Path, ...], as_json: bool
) -> None:
    """List the caches: dataset, model, key, state, samples, layers, size and age.

    With REMOTE, what teammates have pushed there: s3://, gs://, az://, hf://, ssh://, https:// or a shared folder.
    With several roots, a cache that two of them hold is listed once, where it is read from.
    """
    if remote is not None:
        list_remote(remote, model, dataset, as_json)
        return
    search = roots(root)
    documents = [_describe(entry) for entry in scan(search) if _matches(entry, model, dataset)]
    documents += [_closed(folder) for folder in unreadable(search) if _may_match(folder, model, dataset)]
    if as_json:
        print_json(documents)
    elif documents:
        # One root is what most people have: they know where it is.
        columns = (*COLUMNS, "root") if len(search) > 1 else COLUMNS
        rows = [[*table_row(document), document["root"]][: len(columns)] for document in documents]
        print_table(columns, rows, numeric=NUMERIC)
    else:
        echo(f"{none_found(model, dataset)} under {', '.join(map(str, search))}")


def _matches(entry: Entry, model: str | None, dataset: str | None) -> bool:
    if dataset and dataset.lower() not in entry.dataset.lower():
        return False
    return not model or model.lower() in entry.model or has_model_name(entry, model_names(model))


def _may_match(folder: Unreadable, model: str | None, dataset: str | None) -> bool:
    """Return whether an unreadable folder may hold a matching cache; a folder above caches always may."""
    if dataset and folder.dataset and dataset.lower() not in folder.dataset.lower():
        return False
    names = model_names(model) if model else ()
    return not model or not folder.model or model.lower() in folder.model or folder.model in map(slug, names)


def _closed(folder: Unreadable) -> JsonObject:
    return {
        "dataset": folder.dataset or None,
        "model": folder.model or None,
        "key": folder.key or None,
        "path": str(folder.path),
        "root": str(folder.root),
        "state": "unreadable",
        "error": f"{folder.path} cannot be read ({folder.reason})",
    }


def _describe(entry: Entry) -> JsonObject:
    document: JsonObject = {
        "dataset": entry.dataset,
        "model": entry.model,
        "key": entry.key,
        "path": str(entry.path),
        "root": str(entry.root),
    }
    try:
        summary = summarize(entry)
        modified = entry.modified
    except CacheError as error:
        return {**document, "state": "damaged", "error": str(error)}
    except OSError as error:
        return {**document, "state": "unreadable", "error": str(error)}
    inventory = summary.inventory
    return {
        **document,
        "state": _state(entry, summary),
        "samples": {split.name: split.num_samples for split in inventory.splits.values()},
        "layers": summary.num_layers,
        "bytes": inventory.num_bytes,
        "modified": modified,
    }


def _state(entry: Entry, summary: Summary) -> str:
    if entry.complete:
        return f"partial ({summary.part})" if summary.part else "complete"
    total = len(summary.inventory.blocks())
    return f"incomplete ({total - summary.missing_blocks} of {total} blocks)"
