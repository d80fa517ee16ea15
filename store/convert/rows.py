"""Arrays of any origin, read a few rows at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from featcache.store.convert.stored import to_stored_type
from featcache.store.errors import DatasetError
from featcache.store.reading.chunks import Array


class RowArray(Protocol):
    """An array ``[N, ...]`` on disk."""

    @property
    def where(self) -> str:
        """File, and name within the file, for errors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, N first."""

    @property
    def dtype(self) -> str:
        """numpy's name of the type, or ``bfloat16``, whose bits come as uint16."""

    def rows(self, start: int, stop: int) -> Array:
        """Read the rows ``start`` up to, not including, ``stop``."""


@dataclass(frozen=True)
class SlicedRows:
    """An HDF5 dataset, or anything else that gives its rows as slices."""

    where: str
    array: Any
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, N first."""
        return tuple(self.array.shape)

    def rows(self, start: int, stop: int) -> Array:
        """Read some rows, in the machine's byte order."""
        return native(np.asarray(self.array[start:stop]))


def native(values: Array) -> Array:
    """Return the values in the machine's byte order."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class Features:
    """The arrays that together are the layers of one split.

    With K token kinds every array is ``[N, K, D]`` (one layer) or ``[N, L, K, D]``; K = 1 may be left out.

    Raises:
        DatasetError: the arrays do not fit together, or are of a type that cannot be stored.
    """

    arrays: Sequence[RowArray]
    num_tokens: int
    stored: str
    """Stored type, one of `spec.FLOAT_DTYPES`."""

    def __post_init__(self) -> None:
        first = self.arrays[0]
        for array in self.arrays:
            rows, _, width = self._geometry(array)
            if (rows, width) != (self.num_samples, self.width):
                raise DatasetError(
                    f"{array.where} is {list(array.shape)}, {first.where} is {list(first.shape)}: "
                    "all layers of a split must have the same rows and width"
                )
            if array.dtype != first.dtype:
                raise DatasetError(
                    f"{array.where} is {array.dtype}, {first.where} is {first.dtype}: all layers must have one type"
                )

    @property
    def num_samples(self) -> int:
        """N."""
        return self.arrays[0].shape[0]

    @property
    def num_layers(self) -> int:
        """L, over all arrays."""
        return sum(self._geometry(array)[1] for array in self.arrays)

    @property
    def width(self) -> int:
        """D."""
        return self._geometry(self.arrays[0])[2]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all layers as float32, the most that reading takes."""
        return self.num_layers * self.num_tokens * self.width * 4

    def read(self, start: int, stop: int) -> Array:
        """Read rows as ``[B, L, K, D]`` in the stored type; a value that it cannot hold is infinite."""
        parts = [
            to_stored_type(array.rows(start, stop), array.dtype, self.stored).reshape(
                stop - start, self._geometry(array)[1], self.num_tokens, self.width
            )
            for array in self.arrays
        ]
        return np.concatenate(parts, axis=1)

    def _geometry(self, array: RowArray) -> tuple[int, int, int]:
        """Return the rows N, layers L and width D of one array."""
        tokens, between = self.num_tokens, array.shape[1:-1]
        if tokens == 1 and len(between) == 2 and between[1] == 1:
            between = between[:1]
        elif tokens > 1 and between and between[-1] == tokens:
            between = between[:-1]
        elif tokens > 1:
            between = (0, 0)
        if len(array.shape) < 2 or len(between) > 1 or 0 in array.shape:
            expected = "[N, D] or [N, L, D]" if tokens == 1 else f"[N, {tokens}, D] or [N, L, {tokens}, D]"
            raise DatasetError(
                f"{array.where} is {list(array.shape)}; with {tokens} token kind(s) features must be {expected} (--tokens)"
            )
        return array.shape[0], between[0] if between else 1, array.shape[-1]
