"""Input of an import: splits with features, labels and ids, independent of the file format."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.store.arrays import DTYPES
from featcache.store.class_numbers import MAX_LABEL, number_classes
from featcache.store.columns import id_mismatch
from featcache.store.convert.document import ExportDocument
from featcache.store.convert.rows import Features, RowArray
from featcache.store.convert.selection import ids_as_bytes
from featcache.store.convert.steps import ContentDigest, row_steps
from featcache.store.errors import DatasetError
from featcache.store.inventory import MAX_SAMPLE_ID_BYTES
from featcache.store.layers import FINAL
from featcache.store.progress import Update
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import as_float32
from featcache.store.targets import (
    SINGLE_LABEL,
    Targets,
    names_problem,
    too_many_names,
)

_INTEGER = re.compile(r"u?int\d+")


@dataclass(frozen=True)
class ImportSplit:
    """One split to import."""

    name: str
    features: Features
    layers: tuple[str, ...]
    tokens: tuple[str, ...]
    columns: dict[str, Array]
    """Return ``label`` as `Targets` says, if there are labels, ``sample_id`` uint8 ``[N, bytes]``, ``valid`` bool ``[N]``."""

    def digest(self, update: Update, before: int, total: int) -> str:
        """Read everything once: check the values and return the `ContentDigest`.

        Raises:
            DatasetError: a value of a valid row is not finite.
        """
        digest = ContentDigest(self.layers)
        for start, stop in row_steps(0, self.features.num_samples, self.features.row_bytes):
            values = self.features.read(start, stop)
            self._check_finite(values, start)
            digest.update(self.layers, values)
            update(before + stop, total)
        return digest.hexdigest(self.tokens, self.columns)

    def _check_finite(self, values: Array, start: int) -> None:
        finite = np.isfinite(as_float32(values, self.features.stored))
        finite[~self.columns["valid"][start : start + len(values)]] = True
        if finite.all():
            return
        row, layer = (int(i) for i in np.argwhere(~finite)[0][:2])
        raise DatasetError(
            f"split {self.name}, row {start + row}, layer {self.layers[layer]}: a value is NaN or infinite as "
            f"{self.features.stored}; correct the features, or use --dtype float32 if they are too large"
        )


@dataclass(frozen=True)
class ImportSource:
    """Everything to import."""

    where: str
    """The source's name, without its folder."""
    splits: Sequence[ImportSplit]
    targets: Targets
    document: ExportDocument | None
    """The cache that featcache exported this from; None for foreign data."""
    notes: Sequence[str] = ()
    """Notes on the import, such as how labels were numbered."""
    foreign_because: str = "is no export of featcache"
    """Where there is no `document`, the reason why names of dataset and model must be given."""


def exported_source(name: str, splits: Sequence[ImportSplit], document: ExportDocument) -> ImportSource:
    """Combine the splits of an export of featcache: they become its cache again, or one of their own where that cannot be."""
    if document.restorable:
        return ImportSource(name, splits, document.targets, document)
    reason = f"holds decoded values of an {document.spec.dtype} cache, which become a cache of their own"
    return ImportSource(
        name, splits, document.targets, None, [f"the export {reason}"], foreign_because=reason
    )


def layer_names(count: int) -> tuple[str, ...]:
    """Return the names of foreign layers, in order: the last one is what probes take for the backbone's final norm."""
    return (*(str(index) for index in range(count - 1)), FINAL)


def make_columns(
    labels: RowArray | None,
    ids: Sequence[str] | Array | None,
    valid: Array | None,
    num_samples: int,
    targets: Targets | None = None,
    *,
    where: str,
) -> dict[str, Array]:
    """Return the columns of a split of N = `num_samples` rows; ids are row numbers where there are none.

    Labels are class indices, or what `targets` says where featcache exported them; None if it says that there are none.

    Raises:
        DatasetError: labels, ids or valid differ from the features in length, labels are no class indices, or ids are not
            unique or cannot be stored.
    """
    encoded = _encoded_ids(ids, where, num_samples)
    valid = np.ones(num_samples, np.bool_) if valid is None else valid.astype(np.bool_)
    if valid.shape != (num_samples,):
        raise DatasetError(f"{where}: {len(valid)} valid, the features have {num_samples} rows")
    columns = {"sample_id": encoded, "valid": valid}
    return columns if labels is None else {"label": _checked_labels(labels, valid, targets), **columns}


def _checked_labels(labels: RowArray, valid: Array, targets: Targets | None) -> Array:
    """Return the labels ``[N, ...]`` in their stored type."""
    row_shape, num_samples = targets.row_shape if targets else (), len(valid)
    if labels.shape != (num_samples, *row_shape):
        raise DatasetError(
            f"{labels.where} is {list(labels.shape)}, the features have {num_samples} rows: there must be one label a row"
        )
    single = targets is None or targets.type == SINGLE_LABEL
    if single and not _INTEGER.fullmatch(labels.dtype):
        raise DatasetError(f"{labels.where} is {labels.dtype}; labels must be integers from 0")
    values = labels.rows(0, labels.shape[0])
    if single and values[valid].min(initial=0) < 0:
        raise DatasetError(f"{labels.where}: label {values[valid].min()}; labels must be integers from 0")
    if single and values[valid].max(initial=0) > MAX_LABEL:
        raise DatasetError(f"{labels.where}: label {values[valid].max()} is larger than any index of a class")
    return values.astype(DTYPES[targets.dtype if targets else "int64"].stored)


def foreign_source(
    name: str, splits: Sequence[ImportSplit], class_names: Sequence[str] | None, where: str
) -> ImportSource:
    """Combine splits of foreign data: classes have the given names, or their numbers as in `number_classes`.

    Raises:
        DatasetError: a label has no name, or a cache cannot hold the names.
    """
    labels = [split.columns["label"] for split in splits]
    notes: Sequence[str] = ()
    if class_names is None:
        numbered = number_classes(labels, where)
        splits = [
            replace(split, columns=split.columns | {"label": part})
            for split, part in zip(splits, numbered.labels, strict=True)
        ]
        names, notes = numbered.names, numbered.notes
    else:
        names, largest = tuple(class_names), max(int(part.max()) for part in labels)
        if largest >= len(names):
            raise DatasetError(
                f"{where}: label {largest}, but there are {len(names)} class names (--classes)"
            )
    problem = names_problem(names) or too_many_names(names)
    if problem:
        raise DatasetError(f"{where}: {problem} (--classes)")
    return ImportSource(name, splits, Targets(SINGLE_LABEL, names), None, notes)


def _encoded_ids(ids: Sequence[str] | Array | None, where: str, num_samples: int) -> Array:
    """Return ids as a cache stores them; ids of foreign data must be unique.

    Raises:
        DatasetError: ids and rows differ in number, or an id is empty, repeated, too long or not UTF-8.
    """
    if ids is None:
        ids = [str(row) for row in range(num_samples)]
    if len(ids) != num_samples:
        raise DatasetError(f"{where}: {len(ids)} sample ids, the features have {num_samples} rows")
    if isinstance(ids, np.ndarray):
        problem = id_mismatch(ids) or _id_length(ids.shape[1])
        encoded = ids
    else:
        problem = _ids_problem(ids)
        encoded = np.zeros((0, 0), np.uint8) if problem else ids_as_bytes(ids)
    if problem:
        raise DatasetError(f"{where}: sample ids: {problem}")
    return encoded


def _ids_problem(ids: Sequence[str]) -> str | None:
    seen: dict[str, int] = {}
    for row, sample_id in enumerate(ids):
        if not sample_id:
            return f"row {row} has an empty id; ids must tell samples apart (without any, rows are numbered)"
        if "\0" in sample_id:
            return f"row {row} has an id with a NUL ({ascii(sample_id)[:60]})"
        if seen.setdefault(sample_id, row) != row:
            return f"rows {seen[sample_id]} and {row} have the same id {ascii(sample_id)[:60]}; ids must tell samples apart"
    return _id_length(max(len(sample_id.encode()) for sample_id in ids))


def _id_length(longest: int) -> str | None:
    if longest <= MAX_SAMPLE_ID_BYTES:
        return None
    return f"an id has {longest} bytes, at most {MAX_SAMPLE_ID_BYTES} are possible"


def check_agreement(source: ImportSource) -> None:
    """Refuse splits that cannot be in one cache.

    Raises:
        DatasetError: they differ in layers, width or type; the message says how.
    """
    first = source.splits[0]
    for split in source.splits:
        shapes = [(s.features.num_layers, s.features.width, s.features.stored) for s in (first, split)]
        if shapes[0] != shapes[1]:
            said = [
                f"{s.name} has {n} layers of width {w} in {d}"
                for s, (n, w, d) in zip((first, split), shapes, strict=True)
            ]
            raise DatasetError(f"{source.where}: {', '.join(said)}; splits must agree")
        if len(split.layers) != split.features.num_layers:
            raise DatasetError(
                f"{source.where}: split {split.name} names {len(split.layers)} layers, its arrays hold {split.features.num_layers}"
            )
