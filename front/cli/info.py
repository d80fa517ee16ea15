"""``featcache info``: one cache in full."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from featcache.cli.options import common_options
from featcache.console import print_json, size
from featcache.store.catalogue import MAX_TIME, Entry, completed_last, roots, select
from featcache.store.files import JsonObject


@click.command("info", epilog="\b\nExample:\n  featcache info 0123456789ab\n")
@click.argument("cache", required=False)
@common_options
def info_command(cache: str | None, root: tuple[Path, ...], as_json: bool) -> None:
    """Show what a cache is, holds and comes from.

    CACHE is a folder, a key or the beginning of one, or DATASET/MODEL-KEY; without it the cache completed last.
    """
    search = roots(root)
    document = _describe(select(search, cache) if cache else completed_last(search))
    if as_json:
        print_json(document)
    else:
        for line in _lines(document):
            click.echo(line)


def _describe(entry: Entry) -> JsonObject:
    cache = entry.cache
    missing = cache.manifest.missing_blocks()
    return {
        "path": str(entry.path),
        "key": cache.key,
        "complete": entry.complete,
        "blocks": len(cache.inventory.blocks()),
        "missing_blocks": [[block.split, block.index] for block in missing],
        "bytes": cache.inventory.num_bytes,
        "spec": cache.spec.to_dict(),
        "inventory": cache.inventory.to_dict(),
        "provenance": cache.provenance,
    }


def _lines(document: JsonObject) -> list[str]:
    inventory, missing = document["inventory"], document["missing_blocks"]
    state = (
        "complete"
        if document["complete"]
        else f"incomplete, {len(missing)} of {document['blocks']} blocks are missing"
    )
    lines = [
        document["path"],
        f"key       {document['key']}",
        f"state     {state}",
        f"size      {size(document['bytes'])}",
    ]
    for name, split in inventory["splits"].items():
        lines.append(f"{name:<10}{split['num_samples']} samples in blocks of {split['block_rows']}")
        for array, info in split["arrays"].items():
            if info["layers"]:
                layers = (
                    info["layers"][0]
                    if len(info["layers"]) == 1
                    else f"{info['layers'][0]} to {info['layers'][-1]}"
                )
                lines.append(
                    f"          {array}: {info['dtype']} {info['shape']}, layers {layers}, tokens {'+'.join(info['tokens'])}"
                )
    lines.append(
        f"classes   {len(inventory['class_names'])}: {', '.join(inventory['class_names'][:8])}"
        + (", ..." if len(inventory["class_names"]) > 8 else "")
    )
    lines += _section("spec", document["spec"])
    return lines + _section("provenance", document["provenance"])


def _section(title: str, values: JsonObject) -> list[str]:
    lines = [title] if values else []
    for name, value in values.items():
        if isinstance(value, dict):
            lines.append(f"  {name}")
            lines += [f"    {inner:<18}{_text(inner, item)}" for inner, item in value.items()]
        else:
            lines.append(f"  {name:<20}{_text(name, value)}")
    return lines


def _text(name: str, value: Any) -> str:
    if name.endswith("_at") and isinstance(value, int | float) and 0 < value < MAX_TIME:
        return datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds")
    if isinstance(value, dict):
        return ", ".join(f"{inner} {item}" for inner, item in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)
