"""``featcache ls``: the caches there are."""

import time
from pathlib import Path

import click

from featcache.cli.options import common_options
from featcache.console import duration, print_json, print_table, size
from featcache.store.catalogue import Entry, roots, scan
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject

COLUMNS = ("dataset", "model", "key", "state", "train", "test", "layers", "size", "age")


@click.command("ls", epilog="\b\nExample:\n  featcache ls\n")
@common_options
def ls_command(root: tuple[Path, ...], as_json: bool) -> None:
    """List the caches: dataset, model, key, state, samples, layers, size and age."""
    search = roots(root)
    documents = [_describe(entry) for entry in scan(search)]
    if as_json:
        print_json(documents)
    elif documents:
        print_table(
            COLUMNS,
            [_row(document) for document in documents],
            numeric=("train", "test", "layers", "size", "age"),
        )
    else:
        click.echo(f"no caches under {', '.join(map(str, search))}")


def _describe(entry: Entry) -> JsonObject:
    document: JsonObject = {
        "dataset": entry.dataset,
        "model": entry.model,
        "key": entry.key,
        "path": str(entry.path),
    }
    try:
        cache = entry.cache
    except CacheError as error:
        return {**document, "state": "damaged", "error": str(error)}
    inventory = cache.inventory
    total, missing = len(inventory.blocks()), len(cache.manifest.missing_blocks())
    return {
        **document,
        "state": "complete" if entry.complete else f"incomplete ({total - missing} of {total} blocks)",
        "samples": {split.name: split.num_samples for split in inventory.splits.values()},
        "layers": max(len(cache[split].layers) for split in inventory.splits),
        "bytes": inventory.num_bytes,
        "modified": entry.modified,
    }


def _row(document: JsonObject) -> list[str]:
    names = [document[name] for name in ("dataset", "model", "key", "state")]
    if "samples" not in document:
        return [*names, "", "", "", "", ""]
    samples = [str(document["samples"].get(split, "")) for split in ("train", "test")]
    age = duration(max(0.0, time.time() - document["modified"]))
    return [*names, *samples, str(document["layers"]), size(document["bytes"]), age]
