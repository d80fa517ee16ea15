"""``featcache info``: one cache in full."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from featcache.cli.options import common_options
from featcache.cli.remote import describe_remote
from featcache.store.address import is_address
from featcache.store.catalogue import MAX_TIME, Entry, completed_last, report_unreadable, roots, select
from featcache.store.corrections import warnings_of
from featcache.store.files import JsonObject
from featcache.store.partial_copy import PartialCopy, describe_partial
from featcache.store.reading.content import shared_images
from featcache.store.targets import REGRESSION, SINGLE_LABEL
from featcache.store.writing.writer import ADDITIONS
from featcache.terminal.console import ConsoleReporter, echo, format_size, name_range, print_json

EPILOG = """\b
Examples:
  featcache info 0123456789ab
  featcache info s3://bucket/team/flowers/vit-l-14-0123456789ab
"""


@click.command("info", epilog=EPILOG)
@click.argument("cache", required=False)
@common_options
def info_command(cache: str | None, root: tuple[Path, ...], as_json: bool) -> None:
    """Show what a cache is, holds and comes from.

    CACHE is a folder, a key or the beginning of one, or DATASET/MODEL-KEY; without it the cache completed last. For
    REMOTE/CACHE only the manifest and the provenance are fetched.
    """
    if cache and is_address(cache):
        document = describe_remote(cache)
    else:
        search = roots(root)
        if not cache:
            report_unreadable(search, ConsoleReporter())
        document = _describe(select(search, cache) if cache else completed_last(search))
    if as_json:
        print_json(document)
    else:
        for line in _lines(document):
            echo(line)


def _describe(entry: Entry) -> JsonObject:
    cache = entry.cache
    missing = cache.manifest.missing_blocks()
    shared = list(shared_images(cache)) if entry.complete else []
    return {
        "path": str(entry.path),
        "key": cache.key,
        "complete": entry.complete,
        **_part(entry),
        "blocks": len(cache.inventory.blocks()),
        "missing_blocks": [[block.split, block.index] for block in missing],
        "bytes": cache.inventory.num_bytes,
        "spec": cache.manifest.spec_document(),
        "inventory": cache.inventory.to_dict(),
        "targets": cache.inventory.targets.describe(),
        "class_counts": _class_counts(entry),
        "skipped": sum(int((~cache[name].valid()).sum()) for name in cache.inventory.splits)
        if entry.complete
        else None,
        "shared_images": [images.to_dict() for images in shared],
        "provenance": cache.provenance,
        "warnings": warnings_of(cache.spec, cache.inventory.targets, cache.provenance),
    }


def _class_counts(entry: Entry) -> dict[str, list[int]]:
    """Return the samples of every class, by split; of a complete cache that has classes."""
    cache = entry.cache
    if not entry.complete or cache.inventory.target_kind == REGRESSION:
        return {}
    readers = {name: cache[name] for name in cache.inventory.splits}
    return {
        name: cache.inventory.targets.counts(reader.labels(), reader.valid()).tolist()
        for name, reader in readers.items()
    }


def _target_lines(document: JsonObject) -> Iterator[str]:
    """Yield lines with type, names and units of the targets, and the number of samples of the classes."""
    targets = document["targets"]
    units = targets["units"] or [""] * len(targets["names"])
    names = [f"{name} [{unit}]" if unit else name for name, unit in zip(targets["names"], units, strict=True)]
    title = "targets" if targets["kind"] == REGRESSION else "classes"
    kind = "" if targets["kind"] == SINGLE_LABEL else f" ({targets['kind']})"
    yield f"{title:<10}{len(names)}{kind}: {', '.join(names[:8])}" + (", ..." if len(names) > 8 else "")
    for split, counts in document["class_counts"].items():
        if counts:
            yield f"          {split}: {min(counts)} to {max(counts)} samples of a class"


def _part(entry: Entry) -> JsonObject:
    """Describe the content of a partial or borrowed copy, and the origin of the rest."""
    held = PartialCopy.read(entry.path)
    if held is None:
        return {}
    manifest = entry.cache.manifest
    content = describe_partial(manifest.inventory, manifest.full_inventory) if manifest.whole else "all of it"
    state = f"{'borrowed' if held.borrowed else 'a partial copy'}: {content}"
    return {"state": state, "origin": held.origin, "borrowed": held.borrowed}


def _lines(document: JsonObject) -> list[str]:
    inventory, missing = document["inventory"], document["missing_blocks"]
    state = document.get("state") or (
        "complete"
        if document["complete"]
        else f"incomplete, {len(missing)} of {document['blocks']} blocks are missing"
    )
    lines = [
        document["path"],
        f"key       {document['key']}",
        f"state     {state}",
        f"size      {format_size(document['bytes'])}",
    ]
    if "origin" in document:
        lines.append(f"from      {document['origin']}")
    if "digest" in document:
        lines.append(f"digest    {document['digest']}")
    for name, split in inventory["splits"].items():
        lines.append(f"{name:<10}{split['num_samples']} samples in blocks of {split['block_rows']}")
        for array, info in split["arrays"].items():
            if info["layers"]:
                layers, tokens = name_range(info["layers"]), name_range(info["tokens"]).replace(", ", "+")
                lines.append(
                    f"          {array}: {info['dtype']} {info['shape']}, layers {layers}, tokens {tokens}"
                )
    lines += _target_lines(document)
    lines += [f"warning   {warning}" for warning in document.get("warnings", [])]
    if document["skipped"]:
        lines.append(f"skipped   {document['skipped']} samples without features")
    for shared in document["shared_images"]:
        first, second = shared["splits"]
        lines.append(f"leakage   {shared['count']} images of {second} are in {first} too, pixel for pixel")
    lines += _section("spec", document["spec"])
    provenance = {name: value for name, value in document["provenance"].items() if name != ADDITIONS}
    lines += _section("provenance", provenance)
    for addition in document["provenance"].get(ADDITIONS, []):
        lines += _section("addition", addition)
    return lines


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
        return ", ".join(f"{inner} {_text(inner, item)}" for inner, item in value.items())
    if isinstance(value, list):
        return name_range([str(item) for item in value])
    return str(value)
