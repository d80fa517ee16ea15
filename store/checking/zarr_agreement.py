"""All that the Zarr metadata say, held to the inventory: whoever reads without featcache goes by them alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featcache.store.arrays import ArrayInfo
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject
from featcache.store.inventory import Inventory
from featcache.store.zarr_metadata import (
    METADATA_FILE,
    array_attributes,
    array_fields,
    compare_fields,
    read_metadata,
)

_GROUP = {"zarr_format": 3, "node_type": "group"}


def check_metadata(features: Path, path: str, inventory: Inventory) -> None:
    """Hold one metadata file to the inventory: an array's geometry and attributes, a group's consolidated copies.

    Args:
        features: the folder features.zarr.
        path: one of `metadata_paths`.
        inventory: what the cache holds.

    Raises:
        CacheError: the file is missing, not JSON, or a field differs; the message names the field and both values.
    """
    document, where = read_metadata(features / path), str(features / path)
    node = path.removesuffix(METADATA_FILE).rstrip("/")
    arrays = {
        f"{split.name}/{array.name}": array
        for split in inventory.splits.values()
        for array in split.arrays.values()
    }
    if node in arrays:
        compare_fields(_fields(document, arrays[node], inventory, where), where)
        return
    compare_fields(((name, document.get(name), value) for name, value in _GROUP.items()), where)
    for name, copy in _consolidated(document).items():
        full_name, spot = f"{node}/{name}".lstrip("/"), f"{where}: copy of {name!r}"
        if full_name in arrays:
            compare_fields(_fields(copy, arrays[full_name], inventory, spot), spot)
        elif full_name not in inventory.splits:
            raise CacheError(f"{spot}: the manifest knows no such array")


def _fields(
    document: JsonObject, array: ArrayInfo, inventory: Inventory, where: str
) -> Iterator[tuple[str, Any, Any]]:
    yield from array_fields(document, array, where)
    yield "attributes", document.get("attributes"), array_attributes(array, inventory)


def _consolidated(document: JsonObject) -> JsonObject:
    """The copies of the members' metadata in a group's; none if it has none."""
    section = document.get("consolidated_metadata")
    copies = section.get("metadata") if isinstance(section, dict) else None
    entries = copies if isinstance(copies, dict) else {}
    return {name: copy for name, copy in entries.items() if isinstance(copy, dict)}
