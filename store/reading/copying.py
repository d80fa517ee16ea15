"""Copying of rows of a split, independent of the way its files are read.

Shapes: N samples, B rows asked for, L layers, K token kinds, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.reading.chunks import Array, ChunkFiles
from featcache.store.reading.decoding import Decode, ValueTypes
from featcache.store.reading.gather import gather_mapped
from featcache.store.reading.maps import LayerMaps
from featcache.store.reading.reads import read_all, read_rows

Rows = npt.NDArray[np.int64]
Method = Literal["auto", "map", "read"]
"""How files are read: ``map`` (memory maps), ``read`` (plain reads), or ``auto``: maps wherever that is possible."""


@dataclass(frozen=True)
class Selection:
    """Layers and token kinds of a split, checked."""

    layers: tuple[str, ...]
    kinds: tuple[int, ...]
    """Indices of the token kinds."""
    all_kinds: bool
    """All of them, in their own order: then a row of a layer is copied in one piece."""

    @classmethod
    def of(cls, files: ChunkFiles, layers: Sequence[str], tokens: Sequence[str]) -> "Selection":
        """Look names up.

        Raises:
            UnknownNameError: a layer or token kind is not cached.
        """
        for layer in layers:
            files.locate(layer)
        kinds = files.kind_indices(tokens)
        return cls(tuple(layers), tuple(kinds), tuple(tokens) == files.token_array.tokens)

    def row_shape(self, files: ChunkFiles) -> tuple[int, int, int]:
        """Return ``(L, K, D)``."""
        return len(self.layers), len(self.kinds), files.token_array.row_shape[1]


@dataclass
class RowCopier:
    """Copies rows of one split; makes its maps when they are first needed."""

    files: ChunkFiles
    types: ValueTypes = field(init=False)
    """The types in which features can be handed out."""
    _maps: LayerMaps | None = None
    _can_map: bool = field(init=False)

    def __post_init__(self) -> None:
        self.types = ValueTypes(self.files)
        self._can_map = LayerMaps.supported(self.files)

    def maps(self, layers: Sequence[str], method: Method) -> LayerMaps | None:
        """Return the maps, with `layers` mapped; None if files are to be read instead.

        Raises:
            RequestError: `method` is ``map`` and that is not possible.
            UnknownNameError: there is no such method.
        """
        if method not in get_args(Method):
            raise UnknownNameError("method", method, get_args(Method))
        if method != "read" and self._can_map:
            if self._maps is not None and self._maps.region.lost:
                self._maps = None  # new maps check the files again
            try:
                self._maps = self._maps or LayerMaps(self.files)
                self._maps.ensure(layers)
            except OSError:  # such as a limit on address space
                self._can_map, self._maps = False, None
        if method == "map" and not self._can_map:
            raise RequestError("these files cannot be mapped on this system; use method='auto'")
        return self._maps if method != "read" else None

    def copy(self, rows: Rows, selection: Selection, out: Array, maps: LayerMaps | None) -> None:
        """Copy rows ``[B]`` into `out` ``[B, L, K, D]``, from the maps if there are any, else from the files.

        Values are decoded where `out` is not of the stored type.

        Raises:
            CacheError: a file is missing or damaged, or is truncated during the read.
        """
        kinds = None if selection.all_kinds else selection.kinds
        if maps is None:
            read_rows(self.files, rows, selection.layers, kinds, out, self._layer_decodes(selection, out))
        else:
            decode = self.types.decode(selection.layers, selection.kinds, out.dtype)
            self._copy_mapped(maps, rows, selection.layers, kinds, out, decode)
        self.fill_uncommitted(rows, out)

    def read_all(self, selection: Selection, out: Array) -> None:
        """Read all rows into `out` ``[N, L, K, D]``; errors as for `copy`."""
        kinds = None if selection.all_kinds else selection.kinds
        read_all(self.files, selection.layers, kinds, out, self._layer_decodes(selection, out))
        self.fill_uncommitted(np.arange(len(out)), out)

    def _layer_decodes(self, selection: Selection, out: Array) -> list[Decode] | None:
        decodes = [self.types.decode([layer], selection.kinds, out.dtype) for layer in selection.layers]
        return [decode for decode in decodes if decode is not None] or None

    def _copy_mapped(
        self,
        maps: LayerMaps,
        rows: Rows,
        layers: Sequence[str],
        kinds: Sequence[int] | None,
        out: Array,
        decode: Decode | None,
    ) -> None:
        target = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
        gather_mapped(maps, rows, layers, kinds, target, decode)
        if target is not out:
            out[...] = target

    def fill_uncommitted(self, rows: Rows, out: Array) -> None:
        """Write NaN, or the code of a missing value, where rows ``[B]`` are not committed."""
        if self.files.complete:
            return
        committed = [block.index for block in self.files.committed]
        fill = self.files.fill if out.dtype == self.files.token_array.stored_dtype else np.nan
        out[~np.isin(rows // self.files.inventory.block_rows, committed)] = fill


def checked_rows(rows: npt.ArrayLike, num_samples: int) -> Rows:
    """Return row numbers as an array.

    Raises:
        IndexError: one is outside the split, or they are not integers.
    """
    given = np.asarray(rows)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise IndexError(f"rows must be a list of integers, got {given.dtype} of shape {given.shape}")
    rows = given.astype(np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= num_samples):
        raise IndexError(f"rows must be from 0 to {num_samples - 1}")
    return rows


def checked_buffer(shape: tuple[int, ...], dtype: np.dtype[np.generic], out: Array | None) -> Array:
    """Return `out`, or a new buffer.

    Raises:
        ValueError: `out` has another shape or type.
    """
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out must be {dtype} of shape {shape}, got {out.dtype} of shape {out.shape}")
    return out
