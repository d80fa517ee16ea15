"""One HDF5 file: contiguous datasets, so that it can also be mapped by offset, and plain attributes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.store.chunks import Array
from featcache.store.convert.document import ExportDocument
from featcache.store.convert.outputs import whole_file
from featcache.store.convert.selection import Part
from featcache.store.convert.steps import ContentDigest
from featcache.store.progress import Update
from featcache.store.reader import Cache

if TYPE_CHECKING:
    import h5py

DOCUMENT = "featcache"
"""Attribute of the file with the `ExportDocument` as JSON."""


def export_h5(cache: Cache, parts: Sequence[Part], path: Path, update: Update) -> None:
    """Write ``<split>/norm2`` ``[N, L, K, D]``, ``<split>/final`` ``[N, 1, K, D]`` and the columns of every split.

    bfloat16 is stored as its bits in uint16 with the attribute ``logical_dtype``; ids are fixed-length UTF-8.
    """
    import h5py  # a tenth of a second

    total = sum(part.num_samples for part in parts)
    done, digests = 0, {}
    # HDF5 1.8 and later read it; the oldest format holds no more than 64 kB of class names.
    with whole_file(path) as partial, h5py.File(partial, "w", libver=("v108", "v108")) as file:
        update(0, total)
        for part in parts:
            group = file.create_group(part.name)
            digests[part.name] = _write_features(group, part, done, total, update)
            _write_columns(group, part.columns(), cache.inventory.class_names)
            done += part.num_samples
        document = ExportDocument.of(cache, parts, digests)
        file.attrs["key"] = cache.key
        file.attrs["spec"] = json.dumps(cache.spec.to_dict(), ensure_ascii=False)
        file.attrs[DOCUMENT] = json.dumps(document.to_dict(), ensure_ascii=False)


def _write_features(group: "h5py.Group", part: Part, done: int, total: int, update: Update) -> str:
    groups = part.groups()
    datasets = {name: _create(group, name, layers, part) for name, layers in groups.items()}
    digest = ContentDigest(part.layers)
    for start, stop, values in part.read(part.layers):
        for name, layers in groups.items():
            chosen = [part.layers.index(layer) for layer in layers]
            datasets[name][start:stop] = values[:, chosen[0] : chosen[-1] + 1]
        digest.update(part.layers, values)
        update(done + stop, total)
    return digest.hexdigest(part.tokens, part.columns())


def _create(group: "h5py.Group", name: str, layers: tuple[str, ...], part: Part) -> Any:
    shape = (part.num_samples, len(layers), len(part.tokens), part.reader.width)
    dataset = group.create_dataset(name, shape, part.stored_dtype)
    dataset.attrs["layers"] = _texts(layers)
    dataset.attrs["tokens"] = _texts(part.tokens)
    dataset.attrs["logical_dtype"] = part.dtype
    return dataset


def _write_columns(group: "h5py.Group", columns: dict[str, Array], class_names: Sequence[str]) -> None:
    import h5py

    labels = group.create_dataset("label", data=columns["label"])
    labels.attrs["class_names"] = _texts(class_names)
    ids = columns["sample_id"]
    text = h5py.string_dtype("utf-8", ids.shape[1])
    dataset = group.create_dataset("sample_id", ids.shape[:1], text)
    # numpy's bytes are ASCII to HDF5, which does not convert that to UTF-8: say what the bytes are.
    encoded = np.ascontiguousarray(ids).view(f"S{ids.shape[1]}")[:, 0]
    dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, encoded, mtype=dataset.id.get_type())
    # HDF5 has no bool: h5py's own enumeration is strange to everybody else.
    group.create_dataset("valid", data=columns["valid"].astype(np.uint8))


def _texts(names: Sequence[str]) -> Any:
    import h5py

    return np.array(list(names), h5py.string_dtype())
