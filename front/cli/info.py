"""``featcache info``: one cache in full."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from featcache.api.information import describe
from featcache.cli.array_lines import array_lines, view_lines
from featcache.cli.options import common_options
from featcache.store.catalogue import MAX_TIME
from featcache.store.files import JsonObject
from featcache.store.targets import REGRESSION, SINGLE_LABEL, UNLABELED
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
    document = describe(cache, root, ConsoleReporter()).to_dict()
    if as_json:
        print_json(document)
    else:
        for line in _lines(document):
            echo(line)


def _target_lines(document: JsonObject) -> Iterator[str]:
    """Yield lines with type, names and units of the targets, and the number of samples of the classes."""
    targets = document["targets"]
    if targets["kind"] == UNLABELED:
        yield "labels    none; attach some with `featcache label`"
        return
    units = targets["units"] or [""] * len(targets["names"])
    names = [f"{name} [{unit}]" if unit else name for name, unit in zip(targets["names"], units, strict=True)]
    title = "targets" if targets["kind"] == REGRESSION else "classes"
    kind = "" if targets["kind"] == SINGLE_LABEL else f" ({targets['kind']})"
    yield f"{title:<10}{len(names)}{kind}: {', '.join(names[:8])}" + (", ..." if len(names) > 8 else "")
    for split, counts in document["class_counts"].items():
        if counts:
            yield f"          {split}: {min(counts)} to {max(counts)} samples of a class"


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
    if document["preprocessing"]:
        lines.append(f"images    {document['preprocessing'].removeprefix('images are ')}")
    for name, split in inventory["splits"].items():
        lines.append(f"{name:<10}{split['num_samples']} samples in blocks of {split['block_rows']}")
        lines += array_lines(split["arrays"])
    lines += view_lines(inventory.get("views", {}))
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
