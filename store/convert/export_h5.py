"""One HDF5 file: contiguous datasets, so that it can also be mapped by offset, and plain attributes.

h5py writes the structure, and the bytes are then written to where it put the datasets: HDF5 does not survive a full disk
(it crashes when it closes a file that it could not write), and a regular file does.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from featcache.store.convert.document import ExportDocument
from featcache.store.convert.selection import Part
from featcache.store.convert.steps import ContentDigest
from featcache.store.files import atomic_file
from featcache.store.progress import Update
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import Cache
from featcache.store.targets import SINGLE_LABEL, Targets

if TYPE_CHECKING:
    import h5py

DOCUMENT = "featcache"
"""Dataset of the file with the `ExportDocument` as JSON."""
NO_DIGEST = "0" * 64


def export_h5(cache: Cache, parts: Sequence[Part], path: Path, update: Update) -> None:
    """Write ``<split>/norm2`` ``[N, L, K, D]``, ``<split>/final`` ``[N, 1, K, D]`` and the columns of every split.

    bfloat16 is stored as its bits in uint16 with the attribute ``logical_dtype``; ids are fixed-length UTF-8.
    """
    total = sum(part.num_samples for part in parts)
    done, digests = 0, {}
    with atomic_file(path) as partial:
        update(0, total)
        offsets = _create_file(partial, cache, parts)
        with partial.open("rb+") as file:
            for part in parts:
                digests[part.name] = _write_part(file, offsets, part, done, total, update)
                done += part.num_samples
            _write(file, offsets[DOCUMENT], _document(cache, parts, digests))


def _create_file(path: Path, cache: Cache, parts: Sequence[Part]) -> dict[str, int]:
    """Make the file with everything but the bytes of its datasets; where each of them begins."""
    import h5py  # a tenth of a second

    unsigned = ExportDocument.of(cache, parts, {part.name: NO_DIGEST for part in parts})
    offsets = {}
    # HDF5 1.8 and later read it; the oldest format holds no more than 64 kB of class names.
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        file.attrs["key"] = cache.key
        file.attrs["spec"] = json.dumps(cache.spec.to_dict(), ensure_ascii=False)
        size = len(_as_bytes(unsigned))
        offsets[DOCUMENT] = _allocate(file, DOCUMENT, (1,), h5py.string_dtype("utf-8", size)).id.get_offset()
        for part in parts:
            for dataset in _create_part(file.create_group(part.name), part, cache.inventory.targets):
                offsets[dataset.name.lstrip("/")] = dataset.id.get_offset()
    return offsets


def _create_part(group: "h5py.Group", part: Part, targets: Targets) -> "list[h5py.Dataset]":
    import h5py

    text, datasets = h5py.string_dtype(), []
    for name, layers in part.groups().items():
        shape = (part.num_samples, len(layers), len(part.tokens), part.reader.width)
        dataset = _allocate(group, name, shape, part.stored_dtype)
        dataset.attrs["layers"] = np.array(layers, text)
        dataset.attrs["tokens"] = np.array(part.tokens, text)
        dataset.attrs["logical_dtype"] = part.dtype
        datasets.append(dataset)
    if part.label is not None:
        labels = _allocate(group, "label", part.label.shape, part.label.stored_dtype)
        labels.attrs["class_names"] = np.array(targets.names, text)
        if targets.type != SINGLE_LABEL:
            labels.attrs["targets"] = targets.type
            labels.attrs["units"] = np.array(targets.units, text)
        datasets.append(labels)
    ids = _allocate(group, "sample_id", (part.num_samples,), h5py.string_dtype("utf-8", part.id_bytes))
    # HDF5 has no bool: h5py's own enumeration is strange to everybody else.
    valid = _allocate(group, "valid", (part.num_samples,), np.dtype("u1"))
    return [*datasets, ids, valid]


def _allocate(group: "h5py.Group", name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "h5py.Dataset":
    """Create a contiguous dataset that has its place in the file, and leave the bytes alone."""
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return group.create_dataset(name, shape, dtype, dcpl=properties)


def _write_part(
    file: BinaryIO, offsets: Mapping[str, int], part: Part, done: int, total: int, update: Update
) -> str:
    groups, columns = part.groups(), part.columns()
    for name, column in columns.items():
        _write(file, offsets[f"{part.name}/{name}"], column)
    digest = ContentDigest(part.layers)
    for start, stop, values in part.read(part.layers):
        for name, layers in groups.items():
            first = part.layers.index(layers[0])
            row_bytes = len(layers) * part.layer_bytes
            chosen = values[:, first : first + len(layers)]
            _write(file, offsets[f"{part.name}/{name}"] + start * row_bytes, chosen)
        digest.update(part.layers, values)
        update(done + stop, total)
    return digest.hexdigest(part.tokens, columns)


def _write(file: BinaryIO, offset: int, values: Array) -> None:
    file.seek(offset)
    file.write(np.ascontiguousarray(values).data.cast("B"))


def _document(cache: Cache, parts: Sequence[Part], digests: Mapping[str, str]) -> Array:
    # As long as the one without digests, for which there is room.
    return np.frombuffer(_as_bytes(ExportDocument.of(cache, parts, digests)), np.uint8)


def _as_bytes(document: ExportDocument) -> bytes:
    return json.dumps(document.to_dict(), ensure_ascii=False).encode()
