"""HDF5 files as a source: featcache's own exports, and any other by the names of its datasets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.store.convert.document import ExportDocument
from featcache.store.convert.export_h5 import DOCUMENT
from featcache.store.convert.h5_files import find_dataset, format_listing, h5_errors, read_texts
from featcache.store.convert.import_selection import ImportSelection
from featcache.store.convert.rows import Features, SlicedRows
from featcache.store.convert.source import (
    ImportSource,
    ImportSplit,
    exported_source,
    foreign_source,
    layer_names,
    make_columns,
)
from featcache.store.convert.stored import choose_stored_type
from featcache.store.errors import DatasetError, RequestError
from featcache.store.files import parse_json
from featcache.store.inventory import SPLITS
from featcache.store.reading.chunks import Array

if TYPE_CHECKING:
    import h5py


def h5_source(file: "h5py.File", path: Path, choice: ImportSelection) -> ImportSource:
    """Describe what is to be imported of an open file.

    Raises:
        RequestError: a dataset is not there, or which ones are meant is not said.
        DatasetError: they do not fit together.
    """
    if not choice.features and find_dataset(file, path, DOCUMENT) is not None:
        return _own_export(file, path)
    if not choice.features or not choice.labels:
        raise RequestError(
            f"{path} is no export of featcache: say --features DATASET and --labels DATASET; it has {format_listing(file, path)}"
        )
    features, labels, ids = (_by_split(names) for names in (choice.features, choice.labels, choice.ids))
    splits, names = [], choice.class_names
    for split, datasets in features.items():
        if split not in labels:
            raise RequestError(f"split {split} has no labels; add --labels {split}=DATASET")
        arrays = [_dataset(file, path, name) for name in datasets]
        read = Features(
            arrays, len(choice.tokens), choose_stored_type(arrays[0].dtype, arrays[0].where, choice.dtype)
        )
        label_dataset = _dataset(file, path, labels[split][0])
        names = _class_names(label_dataset) if names is None else names
        id_name = ids[split][0] if split in ids else None
        known = read_texts(_dataset(file, path, id_name).array, path, id_name) if id_name else None
        columns = make_columns(label_dataset, known, None, read.num_samples, where=label_dataset.where)
        splits.append(ImportSplit(split, read, layer_names(read.num_layers), choice.tokens, columns))
    return foreign_source(path.name, splits, names, str(path))


def _own_export(file: "h5py.File", path: Path) -> ImportSource:
    where = f"{path}: dataset {DOCUMENT!r}"
    text = _dataset(file, path, DOCUMENT)
    content = _read_all(text) if text.shape == (1,) else np.array([b""])
    json_text = content[0] if isinstance(content[0], bytes) else str(content[0]).encode("utf-8", "replace")
    document = ExportDocument.from_dict(parse_json(json_text, where), where)
    splits = []
    for split, layers in document.layers.items():
        names = [f"{split}/{name}" for name in ("norm2", "final")]
        names = [name for name in names if find_dataset(file, path, name) is not None]
        arrays = [_dataset(file, path, name) for name in names]
        if not arrays:
            raise DatasetError(f"{path}: split {split} has no features")
        dtype = document.spec.dtype if document.restorable else arrays[0].dtype
        features = Features(arrays, len(document.tokens[split]), dtype)
        ids = _read_all(_dataset(file, path, f"{split}/sample_id"))
        encoded = np.ascontiguousarray(ids).view(np.uint8).reshape(len(ids), -1)
        valid = _read_all(_dataset(file, path, f"{split}/valid"))
        labels = _dataset(file, path, f"{split}/label") if document.targets.labeled else None
        columns = make_columns(
            labels, encoded, valid, features.num_samples, document.targets, where=f"{path}: {split}"
        )
        splits.append(ImportSplit(split, features, layers, document.tokens[split], columns))
    return exported_source(path.name, splits, document)


def _by_split(names: Sequence[str]) -> Mapping[str, list[str]]:
    by_split: dict[str, list[str]] = {}
    for name in names:
        split, separator, dataset = name.partition("=")
        if not separator:
            split, dataset = name.strip("/").partition("/")[0], name
        if split not in SPLITS:
            raise RequestError(
                f"dataset {name!r}: say which split it is, as in train={dataset} or test={dataset}"
            )
        by_split.setdefault(split, []).append(dataset)
    return by_split


def _dataset(file: "h5py.File", path: Path, name: str) -> SlicedRows:
    dataset = find_dataset(file, path, name)
    if dataset is None:
        raise RequestError(f"{path} has no dataset {name!r}; it has {format_listing(file, path)}")
    with h5_errors(f"{path}: {name}"):
        logical = dataset.attrs.get("logical_dtype")
        is_bfloat16 = isinstance(logical, str) and logical == "bfloat16" and dataset.dtype == np.uint16
        return SlicedRows(f"{path}: {name}", dataset, "bfloat16" if is_bfloat16 else dataset.dtype.name)


def _class_names(dataset: SlicedRows) -> list[str] | None:
    """Return the names in an attribute of the labels, if it exists.

    Raises:
        DatasetError: a name is not UTF-8.
    """
    with h5_errors(f"{dataset.where}: attribute class_names"):
        if "class_names" not in dataset.array.attrs:
            return None
        values = np.ravel(dataset.array.attrs["class_names"]).tolist()
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _read_all(array: SlicedRows) -> Array:
    with h5_errors(array.where):
        return np.asarray(array.array[()])
