"""All that the Zarr metadata say, held to the inventory: whoever reads without featcache goes by them alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from featcache.store.arrays import ArrayInfo
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field
from featcache.store.inventory import Inventory
from featcache.store.zarr_metadata import (
    METADATA_FILE,
    array_attributes,
    array_fields,
    compare_fields,
    read_metadata,
)

Field = tuple[str, Any, Any]
"""Name, value, wanted value."""

_GROUP = {"zarr_format": 3, "node_type": "group"}
_CONSOLIDATED = {"kind": "inline", "must_understand": False}
_ARRAY_FIELDS = {
    *("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs"),
    *("fill_value", "dimension_names", "attributes", "storage_transformers"),
}
_GROUP_FIELDS = {*_GROUP, "attributes", "consolidated_metadata"}


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
    nodes = _nodes(inventory)
    _check_node(document, nodes[node], inventory, where)
    copies = _consolidated(document, where)
    if copies is None:
        return
    below = f"{node}/" if node else ""
    members = {name.removeprefix(below): name for name in nodes if name.startswith(below) and name != node}
    odd = sorted(members.keys() ^ copies.keys())
    if odd:
        # Readers that go by the copies would see an array too many, or one too few.
        raise CacheError(f"{where}: copies of metadata: {odd[0]!r} is in only one of copies and manifest")
    for name in copies:
        copy = field(copies, name, dict, f"{where}: copies of metadata")
        _check_node(copy, nodes[members[name]], inventory, f"{where}: copy of {name!r}")


def _nodes(inventory: Inventory) -> dict[str, ArrayInfo | None]:
    """Return every group (None) and array by its path within features.zarr."""
    nodes: dict[str, ArrayInfo | None] = {"": None}
    nodes |= {array.name: array for array in inventory.arrays_beside_splits}
    for split in inventory.splits.values():
        nodes[split.name] = None
        nodes |= {f"{split.name}/{array.name}": array for array in split.arrays.values()}
    return nodes


def _check_node(document: JsonObject, array: ArrayInfo | None, inventory: Inventory, where: str) -> None:
    if array is None:
        fields: Iterable[Field] = ((name, document.get(name), value) for name, value in _GROUP.items())
    else:
        fields = _array_fields(document, array, inventory, where)
    compare_fields(fields, where)
    for name in document.keys() - (_ARRAY_FIELDS if array else _GROUP_FIELDS):
        # What a reader that does not know it has to refuse.
        value = document[name]
        if not isinstance(value, dict) or value.get("must_understand") is not False:
            raise CacheError(f"{where}: field {name!r} is not one that a cache has")


def _array_fields(
    document: JsonObject, array: ArrayInfo, inventory: Inventory, where: str
) -> Iterator[Field]:
    yield from array_fields(document, array, where)
    yield "attributes", document.get("attributes"), array_attributes(array, inventory)
    yield "storage_transformers", document.get("storage_transformers", []), []


def _consolidated(document: JsonObject, where: str) -> JsonObject | None:
    """Return the copies of the members' metadata in a group's; None if it has none."""
    section = document.get("consolidated_metadata")
    if section is None:
        return None
    where = f"{where}: copies of metadata"
    section = field(document, "consolidated_metadata", dict, where)
    compare_fields(((name, section.get(name), value) for name, value in _CONSOLIDATED.items()), where)
    return dict(field(section, "metadata", dict, where))
