"""A folder of per-layer files as a source: ``train/layer_00.npy ... labels.npy``, and the same under ``test/``."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from featcache.store.convert.document import EXPORT_FORMAT, ExportDocument
from featcache.store.convert.export_npy import META_FILE, layer_file
from featcache.store.convert.import_selection import ImportSelection
from featcache.store.convert.rows import Features, RowArray
from featcache.store.convert.selection import ids_as_bytes
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
from featcache.store.files import read_json
from featcache.store.inventory import SPLITS
from featcache.store.layers import FINAL

Opener = Callable[[Path], RowArray]

_LAYER = re.compile(r"layer[_-]?(\d+|final)")


def folder_source(folder: Path, choice: ImportSelection, openers: Mapping[str, Opener]) -> ImportSource:
    """Describe what is to be imported of a folder.

    Args:
        folder: holds a folder for each split.
        choice: token kinds, stored type and class names.
        openers: by suffix (``.npy``, ``.pt``), how a file is read.

    Raises:
        RequestError: there is no split, or no layer in one.
        DatasetError: files do not fit together.
    """
    document = _document(folder)
    names = [name for name in SPLITS if (folder / name).is_dir()]
    if not names:
        raise RequestError(
            f"{folder} has no folder train or test with files such as layer_00.npy and labels.npy"
        )
    splits = [_split(folder / name, choice, openers, document) for name in names]
    if document is not None:
        return exported_source(folder.name, splits, document)
    return foreign_source(folder.name, splits, choice.class_names, str(folder))


def _document(folder: Path) -> ExportDocument | None:
    path = folder / META_FILE
    content = read_json(path) if path.is_file() else {}
    return ExportDocument.from_dict(content, str(path)) if content.get("format") == EXPORT_FORMAT else None


def _split(
    folder: Path, choice: ImportSelection, openers: Mapping[str, Opener], document: ExportDocument | None
) -> ImportSplit:
    if document is not None:
        tokens, layers = document.tokens.get(folder.name, ()), document.layers.get(folder.name, ())
        paths = [folder / layer_file(layer) for layer in layers]
    else:
        tokens, paths = choice.tokens, _layer_files(folder, openers)
        layers = layer_names(len(paths))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise DatasetError(f"{folder} lacks {', '.join(missing) or 'layers'}, which its {META_FILE} names")
    arrays = [openers[path.suffix](path) for path in paths]
    stored = (
        document.spec.dtype
        if document and document.restorable
        else choose_stored_type(arrays[0].dtype, arrays[0].where, choice.dtype)
    )
    features = Features(arrays, len(tokens), stored)
    if features.num_layers != len(layers):
        raise DatasetError(
            f"{arrays[0].where} is {list(arrays[0].shape)}: a file must hold one layer (--tokens)"
        )
    labeled = document is None or document.targets.labeled
    labels = _find_named(folder, ("labels", "label", "targets"), openers) if labeled else None
    if labels is None and labeled:
        raise DatasetError(f"{folder} has no labels; there must be a file such as labels.npy")
    ids = _ids(folder, openers)
    encoded = ids_as_bytes(ids, document.id_bytes.get(folder.name)) if document and ids else ids
    valid, targets = _valid(folder, openers), document.targets if document else None
    where = str(folder) if labels is None else labels.where
    columns = make_columns(labels, encoded, valid, features.num_samples, targets, where=where)
    return ImportSplit(folder.name, features, layers, tokens, columns)


def _layer_files(folder: Path, openers: Mapping[str, Opener]) -> list[Path]:
    """Return the files of the layers, by number; ``final`` comes last."""
    files: dict[float, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _LAYER.fullmatch(path.stem)
        if match is None or path.suffix not in openers:
            continue
        number = float("inf") if match[1] == FINAL else int(match[1])
        if number in files:
            raise DatasetError(
                f"{folder}: {files[number].name} and {path.name} are the same layer; remove one"
            )
        files[number] = path
    if not files:
        raise RequestError(f"{folder} has no layers; they must be files such as layer_00.npy or layer_00.pt")
    return [files[number] for number in sorted(files)]


def _find_named(folder: Path, stems: tuple[str, ...], openers: Mapping[str, Opener]) -> RowArray | None:
    for stem in stems:
        for suffix, opener in openers.items():
            if (folder / f"{stem}{suffix}").is_file():
                return opener(folder / f"{stem}{suffix}")
    return None


def _ids(folder: Path, openers: Mapping[str, Opener]) -> list[str] | None:
    ids = _find_named(folder, ("sample_ids", "ids"), openers)
    if ids is None:
        return None
    return [
        value.decode() if isinstance(value, bytes) else str(value)
        for value in ids.rows(0, ids.shape[0]).tolist()
    ]


def _valid(
    folder: Path, openers: Mapping[str, Opener]
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None:
    valid = _find_named(folder, ("valid",), openers)
    return None if valid is None else valid.rows(0, valid.shape[0]).astype(np.bool_)
