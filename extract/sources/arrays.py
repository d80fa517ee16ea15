"""Images that lie in arrays: ``[N, H, W]`` or ``[N, H, W, C]`` with labels ``[N]`` or ``[N, C]``; for HDF5, NPZ and IDX files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.extract.sources.base import Labels
from featcache.extract.sources.collection import Collection, Listing, indexed_targets, refuse_repeated
from featcache.extract.sources.samples import Texts
from featcache.store.errors import DatasetError
from featcache.store.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Targets

if TYPE_CHECKING:
    from PIL.Image import Image

Array = npt.NDArray[Any]
SAMPLED_ROWS = 256
"""Images whose pixels go into the identity, from all over a large array."""
SMALL_BYTES = 2**26
"""An array up to this size goes into it whole."""


@dataclass
class ArrayPart:
    """One split in arrays, or the whole dataset."""

    split: str
    """Empty where there are no splits."""
    images: Any
    """``[N, ...]``: a numpy array, or what can be sliced like one."""
    labels: Array
    """``[N, ...]``."""
    where: str
    """Names the images in errors."""
    ids: Sequence[str] | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class ArrayCollection(Collection):
    """Images in arrays.

    Args:
        kind: of the source.
        name: of the dataset.
        parts: the arrays of every split.
        target: kind of the targets, or ``auto``.
        names: of the classes or quantities, if known.

    Raises:
        DatasetError: images or labels are of a form that cannot be used.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        parts: Sequence[ArrayPart],
        target: str,
        names: Sequence[str] = (),
        unread: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.name = name
        self._images = [part.images for part in parts]
        self._where = [part.where for part in parts]
        for part in parts:
            _check_images(part)
        counts = [len(part.labels) for part in parts]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        ids = [one for part in parts for one in _ids(part)]
        refuse_repeated(ids, name)
        labels, targets = array_targets([part.labels for part in parts], target, names, parts[0].where)
        digest = _digest(targets, ids, labels, [part.images for part in parts])
        rows = {
            part.split: np.arange(start, stop)
            for part, start, stop in zip(parts, self._starts, self._starts[1:], strict=False)
        }
        columns = {
            column: [value for part in parts for value in part.columns[column]]
            for column in parts[0].columns
            if all(column in part.columns for part in parts)
        }
        own = {} if list(rows) == [""] else rows
        self.listing = Listing(Texts.of(ids), labels, targets, digest, own, unread, columns)

    def image(self, row: int) -> "Image":
        """Return one image."""
        part, index = self._locate(row)
        return to_image(self._row(part, index), f"{self.listing.ids[row]} of {self._where[part]}")

    def prepare(self, rows: Sequence[int]) -> None:
        """Be told what is read next."""
        spots = [self._locate(row) for row in rows]
        for part in sorted({part for part, _ in spots}):
            self._read_ahead(part, [index for which, index in spots if which == part])

    def pixels(self, rows: Sequence[int]) -> Array:
        """Pixels of some rows of one split, as they are stored: ``[B, ...]``; rows that follow each other in one piece."""
        part, first = self._locate(rows[0])
        last = first + len(rows)
        if list(rows) == list(range(rows[0], rows[0] + len(rows))) and last <= self._images[part].shape[0]:
            values = np.asarray(self._images[part][first:last])
            return values if values.flags.owndata else values.copy()  # what is mapped is only looked at
        return np.stack([self._row(*self._locate(row)) for row in rows])

    def _row(self, part: int, index: int) -> Array:
        return np.asarray(self._images[part][index])

    def _read_ahead(self, part: int, indices: Sequence[int]) -> None:
        """Nothing to be done for arrays in memory, and for maps."""

    def _locate(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        return part, row - int(self._starts[part])


def _check_images(part: ArrayPart) -> None:
    shape, dtype = tuple(part.images.shape), part.images.dtype
    if len(shape) not in (3, 4) or dtype.kind not in "bu" or dtype.itemsize > 2:
        raise DatasetError(
            f"{part.where} is {list(shape)} {dtype}; images must be [N, H, W] or [N, H, W, C] in uint8 or uint16"
        )
    if shape[0] != len(part.labels):
        raise DatasetError(f"{part.where} has {shape[0]} images, but there are {len(part.labels)} labels")


def _ids(part: ArrayPart) -> Sequence[str]:
    prefix = f"{part.split}/" if part.split else ""
    rows = range(len(part.labels)) if part.ids is None else part.ids
    return [f"{prefix}{row}" for row in rows]


def to_image(pixels: Array, where: str) -> "Image":
    """One image from its pixels, channels last or first.

    Raises:
        DatasetError: they are of a form that is no image.
    """
    from PIL import Image

    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    try:
        return Image.fromarray(np.ascontiguousarray(pixels))
    except (TypeError, ValueError, KeyError):
        raise DatasetError(
            f"image {where} is {list(pixels.shape)} {pixels.dtype}, which is no image"
        ) from None


def array_targets(
    columns: Sequence[Array], target: str, names: Sequence[str], where: str
) -> tuple[Labels, Targets]:
    """Labels of all parts in their stored type, and what they are: integers are classes, 0 and 1 in columns several ones.

    Raises:
        DatasetError: they cannot be such targets.
    """
    # PCAM has [N, 1, 1, 1], MedMNIST [N, 1].
    squeezed = [np.asarray(column).reshape(len(column), -1) for column in columns]
    if len({column.shape[1] for column in squeezed}) > 1:
        raise DatasetError(f"{where}: labels of the splits differ in their number of columns")
    table = np.concatenate(squeezed)
    if table.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: labels are {table.dtype}; they must be numbers")
    kind = target if target != "auto" else _kind_of(table)
    if kind == REGRESSION:
        return table.astype(np.float32), Targets(REGRESSION, _names(names, table.shape[1]))
    whole = table.dtype.kind in "biu" or bool((table == np.floor(table)).all())
    if not whole or table.min(initial=0) < 0:
        raise DatasetError(
            f"{where}: labels are not integers from 0, so they are not {kind} (--target regression)"
        )
    if kind == MULTI_LABEL:
        if table.max(initial=0) > 1:
            raise DatasetError(f"{where}: labels are not 0 or 1, so they are not {kind}")
        return table.astype(np.uint8), Targets(MULTI_LABEL, _names(names, table.shape[1]))
    if table.shape[1] != 1:
        raise DatasetError(f"{where}: labels have {table.shape[1]} columns, so they are not {kind}")
    labels = table[:, 0].astype(np.int64)
    return labels, indexed_targets(labels, names)


def _kind_of(table: Array) -> str:
    if table.dtype.kind == "f":
        return REGRESSION
    return SINGLE_LABEL if table.shape[1] == 1 else MULTI_LABEL


def _names(names: Sequence[str], count: int) -> tuple[str, ...]:
    return (*names[:count], *(str(index) for index in range(len(names), count)))


def _digest(targets: Targets, ids: Sequence[str], labels: Labels, images: Sequence[Any]) -> str:
    """SHA-256 over names, ids, labels and pixels; of a large array over some images from all over it."""
    digest = hashlib.sha256("\0".join((*targets.names, *ids)).encode())
    digest.update(labels.tobytes())
    for array in images:
        digest.update(f"{tuple(array.shape)} {array.dtype}".encode())
        small = int(np.prod(array.shape)) * array.dtype.itemsize <= SMALL_BYTES
        if small:
            digest.update(np.ascontiguousarray(array[:]).tobytes())
            continue
        for row in np.linspace(0, array.shape[0] - 1, SAMPLED_ROWS).astype(int).tolist():
            digest.update(np.ascontiguousarray(array[row]).tobytes())
    return digest.hexdigest()
