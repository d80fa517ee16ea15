"""HDF5 files as a source: featcache's own exports, and any other by the names of its datasets."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.store.convert.choice import Choice
from featcache.store.convert.document import ExportDocument
from featcache.store.convert.export_h5 import DOCUMENT
from featcache.store.convert.rows import Features, SlicedRows
from featcache.store.convert.source import (
    ImportSource,
    ImportSplit,
    class_targets,
    layer_names,
    make_columns,
)
from featcache.store.convert.stored import choose_stored
from featcache.store.errors import CacheError, DatasetError, RequestError
from featcache.store.inventory import SPLITS
from featcache.store.reading.chunks import Array

if TYPE_CHECKING:
    import h5py


def open_h5(path: Path) -> "h5py.File":
    """Open an HDF5 file for reading.

    Raises:
        DatasetError: it is not one.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read as HDF5 ({error})") from None


def h5_source(file: "h5py.File", path: Path, choice: Choice) -> ImportSource:
    """Describe what is to be imported of an open file.

    Raises:
        RequestError: a dataset is not there, or which ones are meant is not said.
        DatasetError: they do not fit together.
    """
    if DOCUMENT in file and not choice.features:
        return _own(file, path)
    if not choice.features or not choice.labels:
        raise RequestError(
            f"{path} is no export of featcache: say --features DATASET and --labels DATASET; it has {_listed(file)}"
        )
    features, labels, ids = (_by_split(names) for names in (choice.features, choice.labels, choice.ids))
    splits, names = [], choice.class_names
    for split, datasets in features.items():
        if split not in labels:
            raise RequestError(f"split {split} has no labels; add --labels {split}=DATASET")
        arrays = [_dataset(file, path, name) for name in datasets]
        read = Features(
            arrays, len(choice.tokens), choose_stored(arrays[0].dtype, arrays[0].where, choice.dtype)
        )
        label_dataset = _dataset(file, path, labels[split][0])
        if names is None and "class_names" in label_dataset.array.attrs:
            names = [str(name) for name in label_dataset.array.attrs["class_names"]]
        known = _texts(_dataset(file, path, ids[split][0])) if split in ids else None
        columns = make_columns(label_dataset, known, None, read.num_samples)
        splits.append(ImportSplit(split, read, layer_names(read.num_layers), choice.tokens, columns))
    return ImportSource(path.name, splits, class_targets(splits, names, str(path)), None)


def _own(file: "h5py.File", path: Path) -> ImportSource:
    where = f"{path}: dataset {DOCUMENT!r}"
    text = _dataset(file, path, DOCUMENT)
    try:
        content = json.loads(text.array[0] if text.shape == (1,) else b"")
    except (ValueError, TypeError, RecursionError) as error:
        raise CacheError(f"{where}: not valid JSON ({error})") from None
    document = ExportDocument.from_dict(content if isinstance(content, dict) else {}, where)
    splits = []
    for split, layers in document.layers.items():
        names = [f"{split}/{name}" for name in ("norm2", "final") if f"{split}/{name}" in file]
        arrays = [_dataset(file, path, name) for name in names]
        if not arrays:
            raise DatasetError(f"{path}: split {split} has no features")
        features = Features(arrays, len(document.tokens[split]), document.spec.dtype)
        ids = _dataset(file, path, f"{split}/sample_id").array[:]
        encoded = np.ascontiguousarray(ids).view(np.uint8).reshape(len(ids), -1)
        valid = _dataset(file, path, f"{split}/valid").array[:]
        labels = _dataset(file, path, f"{split}/label")
        columns = make_columns(labels, encoded, valid, features.num_samples, document.targets)
        splits.append(ImportSplit(split, features, layers, document.tokens[split], columns))
    return ImportSource(path.name, splits, document.targets, document)


def _by_split(names: Sequence[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        split, separator, dataset = name.partition("=")
        if not separator:
            split, dataset = name.strip("/").partition("/")[0], name
        if split not in SPLITS:
            raise RequestError(
                f"dataset {name!r}: say which split it is, as in train={dataset} or test={dataset}"
            )
        found.setdefault(split, []).append(dataset)
    return found


def _dataset(file: "h5py.File", path: Path, name: str) -> SlicedRows:
    import h5py

    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise RequestError(f"{path} has no dataset {name!r}; it has {_listed(file)}")
    logical = dataset.attrs.get("logical_dtype")
    dtype = "bfloat16" if logical == "bfloat16" and dataset.dtype == np.uint16 else dataset.dtype.name
    return SlicedRows(f"{path}: {name}", dataset, dtype)


def _listed(file: "h5py.File") -> str:
    import h5py

    found: list[str] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(f"{name} {list(item.shape or ())} {item.dtype}")

    file.visititems(note)
    return ", ".join(found[:20]) + (", ..." if len(found) > 20 else "") if found else "no datasets"


def _texts(column: SlicedRows) -> list[str]:
    values: Array = column.array[:]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
