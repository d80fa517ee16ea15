"""Images that lie in arrays ``[N, H, W]``, ``[N, H, W, C]`` or ``[N]`` (image files), with labels: HDF5, NPZ and IDX files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.array_images import (
    decode_row,
    image_notes,
    is_encoded,
    to_channels,
    to_image,
)
from featcache.extraction.sources.array_labels import array_targets, unlabeled_targets
from featcache.extraction.sources.base import Labels
from featcache.extraction.sources.collection import Collection, Listing, refuse_repeated
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.pixels import RGB_CHANNELS
from featcache.extraction.sources.samples import Texts
from featcache.store.errors import DatasetError
from featcache.store.targets import UNLABELED, Targets

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
    labels: Array | None
    """``[N, ...]``; None if the images have no labels."""
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
        options: target type, and pixel range.
        names: of the classes or quantities, if known.
        unread: splits that exist and were not requested.
        notes: notes on the files.

    Raises:
        DatasetError: images or labels are of a form that cannot be used.
    """

    def __init__(
        self,
        source_type: str,
        name: str,
        parts: Sequence[ArrayPart],
        options: DatasetOptions,
        names: Sequence[str] = (),
        unread: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.source_type = source_type
        self.name = name
        self._images = [part.images for part in parts]
        self._where = [part.where for part in parts]
        self.may_be_turned = any(is_encoded(images) for images in self._images)
        self.takes_channels = not self.may_be_turned
        self._channels = options.channels
        self._range = options.pixels.pixel_range
        said = list(notes)
        for part in parts:
            _check_count(part)
            said += image_notes(part.images, part.where, self._range, options.channels)
        counts = [part.images.shape[0] for part in parts]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        ids = [sample_id for part in parts for sample_id in _ids(part)]
        refuse_repeated(ids, name)
        labels = [part.labels for part in parts if part.labels is not None]
        if 0 < len(labels) < len(parts):
            lacking = next(part.split for part in parts if part.labels is None)
            raise DatasetError(
                f"{name}: split {lacking} has no labels, and others have; --target {UNLABELED} reads none"
            )
        if labels:
            inferred = array_targets(labels, options.target, names, parts[0].where)
        else:
            inferred = unlabeled_targets(int(self._starts[-1]))
        digest = _digest(inferred.targets, ids, inferred.labels, [part.images for part in parts])
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
        self.listing = Listing(
            Texts.of(ids),
            inferred.labels,
            inferred.targets,
            digest,
            own,
            unread,
            columns,
            notes=[*said, *inferred.notes],
        )

    def image(self, row: int) -> "Image":
        """Return one image."""
        part, index = self._locate(row)
        where = f"{self.listing.ids[row]} of {self._where[part]}"
        if is_encoded(self._images[part]):
            return decode_row(self._rows(part, index, index + 1)[0], where)
        if self._channels != RGB_CHANNELS:
            return to_channels(self._row(part, index), where, self._range, self._channels)
        return to_image(self._row(part, index), where, self._range)

    def prepare(self, rows: Sequence[int]) -> None:
        """Prefetch hint: these rows are read next."""
        spots = [self._locate(row) for row in rows]
        for part in sorted({part for part, _ in spots}):
            self._read_ahead(part, [index for which, index in spots if which == part])

    def pixels(self, rows: Sequence[int]) -> Array:
        """Return the pixels of some rows of one split, as they are stored: ``[B, ...]``; rows that follow each other in one piece."""
        part, first = self._locate(rows[0])
        last = first + len(rows)
        if list(rows) == list(range(rows[0], rows[0] + len(rows))) and last <= self._images[part].shape[0]:
            values = np.asarray(self._images[part][first:last])
            return values if values.flags.owndata else values.copy()  # what is mapped is only looked at
        return np.stack([self._row(*self._locate(row)) for row in rows])

    def _row(self, part: int, index: int) -> Array:
        return np.asarray(self._rows(part, index, index + 1)[0])

    def _rows(self, part: int, start: int, stop: int) -> Array:
        """Return the rows ``start`` to ``stop`` (exclusive) of one part."""
        rows: Array = self._images[part][start:stop]
        return rows

    def _read_ahead(self, part: int, indices: Sequence[int]) -> None:
        """Prefetch rows of one part; arrays in memory and maps need nothing."""

    def _locate(self, row: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        return part, row - int(self._starts[part])


def _check_count(part: ArrayPart) -> None:
    if (part.labels is not None and not np.ndim(part.labels)) or not part.images.shape:
        raise DatasetError(
            f"{part.where}: images or labels are a single value, there must be one for each sample"
        )
    count = part.images.shape[0]
    if part.labels is not None and count != len(part.labels):
        raise DatasetError(f"{part.where} has {count} images, but there are {len(part.labels)} labels")
    for column, values in {"ids": part.ids, **part.columns}.items():
        if values is not None and len(values) != count:
            raise DatasetError(f"{part.where} has {count} images, but {len(values)} values of {column}")


def _ids(part: ArrayPart) -> Sequence[str]:
    prefix = f"{part.split}/" if part.split else ""
    rows = range(part.images.shape[0]) if part.ids is None else part.ids
    return [f"{prefix}{row}" for row in rows]


def _digest(targets: Targets, ids: Sequence[str], labels: Labels, images: Sequence[Any]) -> str:
    """Return SHA-256 over names, ids, labels and pixels; of a large array over some images from all over it."""
    digest = hashlib.sha256("\0".join((*targets.names, *ids)).encode())
    digest.update(labels.tobytes())
    for array in images:
        digest.update(f"{tuple(array.shape)} {array.dtype}".encode())
        if array.dtype.hasobject:
            for row in sorted({int(row) for row in np.linspace(0, array.shape[0] - 1, SAMPLED_ROWS)}):
                content = np.asarray(array[row : row + 1][0])
                digest.update(f"{len(content.tobytes())}\n".encode() + content.tobytes())
            continue
        small = prod(array.shape) * array.dtype.itemsize <= SMALL_BYTES
        if small:
            digest.update(np.ascontiguousarray(array[:]).tobytes())
            continue
        for row in np.linspace(0, array.shape[0] - 1, SAMPLED_ROWS).astype(int).tolist():
            digest.update(np.ascontiguousarray(array[row]).tobytes())
    return digest.hexdigest()
