"""The Zarr v3 side of a cache: zarr-python writes the metadata, the reader holds it to the inventory.

Only what the memory map relies on is allowed: uncompressed little-endian chunks under flat names.
"""

import json
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from featcache.store.arrays import DTYPES, ArrayInfo
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field, is_identical_json, read_json
from featcache.store.inventory import PROJECTION, Inventory
from featcache.store.quantization import INT8, MISSING_CODE, OFFSET, SCALE
from featcache.store.token_groups import split_view

METADATA_FILE = "zarr.json"
PROJECTION_CHUNK = f"{PROJECTION}/c.0.0"


def metadata_paths(inventory: Inventory) -> Iterator[str]:
    """Yield all metadata files, as paths within features.zarr."""
    yield from group_metadata_paths(inventory)
    yield from array_metadata_paths(inventory)


def recorded_paths(inventory: Inventory) -> Iterator[str]:
    """Yield all files that the manifest's table `metadata` lists: the metadata, and the chunks of the arrays beside the splits."""
    yield from metadata_paths(inventory)
    yield from chunks_beside_splits(inventory)


def chunks_beside_splits(inventory: Inventory) -> dict[str, ArrayInfo]:
    """Return the arrays beside the splits by the path of their one chunk within features.zarr."""
    return {f"{array.name}/c{'.0' * len(array.shape)}": array for array in inventory.arrays_beside_splits}


def group_metadata_paths(inventory: Inventory) -> Iterator[str]:
    """Yield the metadata files of the groups, which copy what their members say."""
    yield METADATA_FILE
    for split in inventory.splits.values():
        yield f"{split.name}/{METADATA_FILE}"


def array_metadata_paths(inventory: Inventory) -> Iterator[str]:
    """Yield the metadata files of the arrays."""
    for array in inventory.arrays_beside_splits:
        yield f"{array.name}/{METADATA_FILE}"
    for split in inventory.splits.values():
        for array in split.arrays.values():
            yield f"{split.name}/{array.name}/{METADATA_FILE}"


def metadata_documents(inventory: Inventory) -> dict[str, bytes]:
    """Return the metadata of all groups and arrays as zarr-python writes them, by path within features.zarr."""
    import zarr  # a quarter of a second: only writers pay
    from zarr.storage import MemoryStore

    documents: dict[str, Any] = {}
    store = MemoryStore(documents)
    group = zarr.create_group(store=store, zarr_format=3)
    for array in inventory.arrays_beside_splits:
        _create(group, array, inventory)
    for split in inventory.splits.values():
        members = group.create_group(split.name)
        for array in split.arrays.values():
            _create(members, array, inventory)
    with warnings.catch_warnings():
        # zarr warns that consolidated metadata is an extension. It is a copy that no reader needs, but xarray warns
        # where it is missing.
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part", UserWarning)
        for path in ("", *inventory.splits):
            zarr.consolidate_metadata(store, path=path)
    # zarr's order of keys is not ours to rely on; sorted, the bytes depend on content alone.
    return {
        path: json.dumps(json.loads(documents[path].to_bytes()), indent=2, sort_keys=True).encode()
        for path in metadata_paths(inventory)
    }


def _create(group: Any, array: ArrayInfo, inventory: Inventory) -> None:
    group.create_array(
        array.name,
        shape=array.shape,
        chunks=array.chunk_shape,
        dtype=array.stored_dtype,
        compressors=None,
        filters=None,
        fill_value=DTYPES[array.dtype].fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=array.dimension_names,
        attributes=array_attributes(array, inventory),
        # All-fill chunks must exist as files, or there is nothing to map.
        config={"write_empty_chunks": True},
    )


def array_attributes(array: ArrayInfo, inventory: Inventory) -> JsonObject:
    """Return the attributes of an array beyond Zarr's own: names of layers, tokens and classes, the view, and the type behind the bits."""
    attributes: JsonObject = {}
    if array.layers:
        attributes |= {"layers": list(array.layer_axis), "tokens": list(array.tokens)}
        if view := split_view(array.name)[0]:
            attributes["view"] = {"name": view, **inventory.views[view].to_dict()}
    if array.dtype == "bfloat16":
        attributes["logical_dtype"] = "bfloat16"
    if array.layers and array.dtype == INT8:
        attributes |= {
            "quantization": {
                "scale": f"/{SCALE}_{array.name}",
                "offset": f"/{OFFSET}_{array.name}",
                "missing": MISSING_CODE,
            }
        }
    if array.name == "label":
        attributes |= {"class_names": list(inventory.class_names), **inventory.targets.to_dict()}
    return attributes


def check_array_metadata(path: Path, array: ArrayInfo) -> None:
    """Hold an array's zarr.json to the inventory.

    Raises:
        CacheError: the file is missing or a field differs; the message names the field and both values.
    """
    compare_fields(array_fields(read_metadata(path), array, str(path)), str(path))


def read_metadata(path: Path) -> JsonObject:
    """Read a zarr.json; a missing one is a `CacheError` too."""
    try:
        return read_json(path)
    except FileNotFoundError:
        raise CacheError(f"{path}: missing; the cache is damaged") from None


def compare_fields(fields: Iterable[tuple[str, Any, Any]], where: str) -> None:
    """Refuse the first field that is not as wanted; fields are (name, value, wanted value)."""
    for name, got, expected in fields:
        if not is_identical_json(got, expected):
            raise CacheError(f"{where}: field {name!r} is {got!r}, the manifest says {expected!r}")


def array_fields(document: JsonObject, array: ArrayInfo, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields that the memory map relies on, as (name, value, expected value)."""
    yield "zarr_format", document.get("zarr_format"), 3
    yield "node_type", document.get("node_type"), "array"
    yield "shape", document.get("shape"), list(array.shape)
    yield "data_type", document.get("data_type"), array.stored_dtype.name
    grid = field(document, "chunk_grid", dict, where)
    yield "chunk_grid", grid, {"name": "regular", "configuration": {"chunk_shape": list(array.chunk_shape)}}
    encoding = field(document, "chunk_key_encoding", dict, where)
    yield "chunk_key_encoding", encoding, {"name": "default", "configuration": {"separator": "."}}
    yield "codecs", *_codecs(document, array)
    yield "fill_value", document.get("fill_value"), _fill_json(array)
    yield "dimension_names", document.get("dimension_names"), list(array.dimension_names)


def _codecs(document: JsonObject, array: ArrayInfo) -> tuple[Any, Any]:
    # One-byte types have no byte order, so their codec may leave the configuration out.
    if array.stored_dtype.itemsize == 1:
        codecs = document.get("codecs")
        names = (
            [c.get("name") if isinstance(c, dict) else c for c in codecs]
            if isinstance(codecs, list)
            else codecs
        )
        return names, ["bytes"]
    return document.get("codecs"), [{"name": "bytes", "configuration": {"endian": "little"}}]


def _fill_json(array: ArrayInfo) -> Any:
    fill = DTYPES[array.dtype].fill
    return "NaN" if isinstance(fill, float) and math.isnan(fill) else fill
