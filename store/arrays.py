"""Geometry of the arrays: shapes, chunks, file names and stored types of one split.

One chunk is one layer of one block of rows, so a chunk file is the bare little-endian bytes of ``[R, K, D]``.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from featcache.store.layers import FINAL

MIN_BLOCK_ROWS = 128
MAX_BLOCK_ROWS = 4096
MAX_BLOCKS = 64


@dataclass(frozen=True)
class DType:
    """A value type and how Zarr stores it."""

    stored: np.dtype[np.generic]
    fill: float | int | bool
    """Value of the padding of the last block, and of what was never written."""

    @property
    def fill_bytes(self) -> bytes:
        """One stored fill value."""
        return np.asarray(self.fill, self.stored).tobytes()


# zarr-python has no bfloat16, so its bits are stored as uint16 (0x7FC0 is its NaN) with the attribute `logical_dtype`.
DTYPES = {
    "float16": DType(np.dtype("<f2"), float("nan")),
    "float32": DType(np.dtype("<f4"), float("nan")),
    "bfloat16": DType(np.dtype("<u2"), 0x7FC0),
    "int64": DType(np.dtype("<i8"), -1),
    "uint8": DType(np.dtype("u1"), 0),
    "bool": DType(np.dtype("?"), False),
    # Features as codes, which `featcache.store.quantization` explains; -128 stands for a missing value.
    "int8": DType(np.dtype("i1"), -128),
}


def block_rows(num_samples: int) -> int:
    """Return the rows R of a block: the smallest power of two from 128 to 4,096 that gives at most 64 blocks."""
    rows = MIN_BLOCK_ROWS
    while rows < MAX_BLOCK_ROWS and -(-num_samples // rows) > MAX_BLOCKS:
        rows *= 2
    return rows


@dataclass(frozen=True)
class ArrayInfo:
    """One Zarr array of a split. Token arrays are ``[sample, layer, token, channel]``, the others ``[sample, ...]``."""

    name: str
    shape: tuple[int, ...]
    block_rows: int
    dtype: str
    """Value type, a key of `DTYPES`."""
    dimension_names: tuple[str, ...]
    layers: tuple[str, ...] = ()
    """Layers that are held, in order; the others of axis 1 have no files. Empty for arrays without layers."""
    tokens: tuple[str, ...] = ()
    """Names along axis 2; empty for arrays without layers."""

    @property
    def layer_axis(self) -> tuple[str, ...]:
        """Layer names along axis 1, held or not: all blocks of the backbone, or the one layer `final`."""
        if not self.layers or self.layers == (FINAL,):
            return self.layers
        return tuple(str(index) for index in range(self.shape[1]))

    def position(self, layer: str) -> int:
        """Index of a held layer along axis 1."""
        return 0 if layer == FINAL else int(layer)

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """numpy type of the bytes on disk."""
        return DTYPES[self.dtype].stored

    @property
    def num_blocks(self) -> int:
        """Number of blocks of rows."""
        return -(-self.shape[0] // self.block_rows)

    @property
    def files_per_block(self) -> int:
        """Chunk files of one block: one a layer, or one."""
        return len(self.layers) or 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row in one chunk file: ``[K, D]`` for token arrays."""
        return self.shape[2:] if self.layers else self.shape[1:]

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a chunk as Zarr sees it."""
        return (self.block_rows, 1, *self.row_shape) if self.layers else (self.block_rows, *self.row_shape)

    @cached_property
    def chunk_bytes(self) -> int:
        """Size of every chunk file, padding included."""
        return prod(self.chunk_shape) * self.stored_dtype.itemsize

    def chunk_name(self, block: int, position: int = 0) -> str:
        """Return the file name of a chunk within the array's folder, such as ``c.3.11.0.0``; `position` is that of its layer."""
        indices = [block, *([position] if self.layers else []), *(0 for _ in self.row_shape)]
        return ".".join(("c", *map(str, indices)))

    def chunk_names(self, block: int) -> list[str]:
        """Return file names of all chunks of a block that are held, in layer order."""
        if not self.layers:
            return [self.chunk_name(block)]
        tail = ".0" * len(self.row_shape)
        return [f"c.{block}.{self.position(layer)}{tail}" for layer in self.layers]

    def check_rows(self, values: npt.NDArray[np.generic], rows: int) -> None:
        """Refuse values that are not `rows` rows of this array.

        Raises:
            ValueError: shape or type differ.
        """
        shape = (rows, *([len(self.layers)] if self.layers else []), *self.row_shape)
        if values.shape != shape or values.dtype != self.stored_dtype:
            raise ValueError(
                f"array {self.name!r} takes {self.stored_dtype} of shape {shape}, got {values.dtype} of shape {values.shape}"
            )
