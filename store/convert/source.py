"""What is imported: splits with features, labels and ids, wherever they were read from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.store.arrays import DTYPES
from featcache.store.convert.document import ExportDocument
from featcache.store.convert.rows import Features, RowArray
from featcache.store.convert.selection import ids_as_bytes
from featcache.store.convert.steps import ContentDigest, row_steps
from featcache.store.errors import DatasetError
from featcache.store.layers import FINAL
from featcache.store.progress import Update
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import as_float32
from featcache.store.targets import SINGLE_LABEL, Targets


@dataclass(frozen=True)
class ImportSplit:
    """One split to import."""

    name: str
    features: Features
    layers: tuple[str, ...]
    tokens: tuple[str, ...]
    columns: dict[str, Array]
    """``label`` as `Targets` says, ``sample_id`` uint8 ``[N, bytes]``, ``valid`` bool ``[N]``."""

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
            f"{self.features.stored}; mend the features, or use --dtype float32 if they are too large"
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


def layer_names(count: int) -> tuple[str, ...]:
    """Names of foreign layers, in order: the last one is what probes take for the backbone's final norm."""
    return (*(str(index) for index in range(count - 1)), FINAL)


def make_columns(
    labels: RowArray,
    ids: Sequence[str] | Array | None,
    valid: Array | None,
    num_samples: int,
    targets: Targets | None = None,
) -> dict[str, Array]:
    """Return the columns of a split of N = `num_samples` rows; ids are row numbers where there are none.

    Labels are class indices, or what `targets` says where featcache exported them.

    Raises:
        DatasetError: labels, ids or valid have other rows than the features, or labels are no class indices.
    """
    values = labels.rows(0, labels.shape[0]) if labels.shape else np.zeros(0)
    row_shape = targets.row_shape if targets else ()
    if values.shape != (num_samples, *row_shape):
        raise DatasetError(
            f"{labels.where} is {list(labels.shape)}, the features have {num_samples} rows: there must be one label a row"
        )
    single = targets is None or targets.kind == SINGLE_LABEL
    if single and values.dtype.kind not in "iu":
        raise DatasetError(f"{labels.where} is {labels.dtype}; labels must be integers from 0")
    if ids is None:
        ids = [str(row) for row in range(num_samples)]
    encoded = ids if isinstance(ids, np.ndarray) else ids_as_bytes(ids)
    valid = np.ones(num_samples, np.bool_) if valid is None else valid.astype(np.bool_)
    for what, column in (("sample ids", encoded), ("valid", valid)):
        if len(column) != num_samples:
            raise DatasetError(f"{labels.where}: {len(column)} {what}, the features have {num_samples} rows")
    if single and values[valid].min(initial=0) < 0:
        raise DatasetError(f"{labels.where}: label {values[valid].min()}; labels must be integers from 0")
    stored = DTYPES[targets.dtype if targets else "int64"].stored
    return {"label": values.astype(stored), "sample_id": encoded, "valid": valid}


def class_targets(splits: Sequence[ImportSplit], names: Sequence[str] | None, where: str) -> Targets:
    """Return the classes: by the names given, or numbers.

    Raises:
        DatasetError: a label has no name.
    """
    highest = max(int(split.columns["label"].max()) for split in splits)
    if names is None:
        return Targets(SINGLE_LABEL, tuple(str(label) for label in range(highest + 1)))
    if highest >= len(names):
        raise DatasetError(f"{where}: label {highest}, but there are {len(names)} class names (--classes)")
    return Targets(SINGLE_LABEL, tuple(names))


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
