"""The chunk files of one split, held to the inventory before a byte of them is used.

Shapes: N samples, L layers, K token kinds, D width, R rows of a block.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store.arrays import DTYPES, ArrayInfo
from featcache.store.errors import CacheError, UnknownNameError
from featcache.store.inventory import DEFAULT_TAP, Block, SplitInventory
from featcache.store.layers import FINAL
from featcache.store.regular_files import open_regular, refuse_link
from featcache.store.token_groups import POOLED, array_name
from featcache.store.zarr_metadata import METADATA_FILE, check_array_metadata

Array = npt.NDArray[Any]
Layer = tuple[ArrayInfo, int]
"""Location of a layer: its array, and its position along that array's axis of layers."""


class ChunkFiles:
    """Finds and opens the chunk files of one view of a split: a group of tokens at one tap, and in the final layer.

    Args:
        features: the folder features.zarr.
        inventory: what the split holds.
        committed: the blocks that exist.
        tap: the tap; its blocks come first, the final layer last.
        group: the group of tokens.
        view: the view of the images; empty for the plain one.

    Raises:
        UnknownNameError: the split does not hold this view.
        CacheError: the default arrays differ in width, token kinds or type.
    """

    def __init__(
        self,
        features: Path,
        inventory: SplitInventory,
        committed: Sequence[Block],
        tap: str = DEFAULT_TAP,
        group: str = POOLED,
        view: str = "",
    ) -> None:
        self.inventory = inventory
        self.committed = tuple(committed)
        self.features = features
        self._folder = features / inventory.name
        self._prefix = str(self._folder)
        self._checked: set[str] = set()
        self.token_arrays = self._view(tap, group, view)
        """The arrays of the view: that of the tap, that of the final layer, or both."""
        self.token_array = self.token_arrays[-1]
        """Tells ``[K, D]``, token kinds and type of every layer."""

    def _view(self, tap: str, group: str, view: str) -> tuple[ArrayInfo, ...]:
        held = {name: array for name, array in self.inventory.arrays.items() if array.layers}
        of_tap, final = (held.get(array_name(place, group, view)) for place in (tap, FINAL))
        if of_tap is None and (final is None or tap not in (FINAL, DEFAULT_TAP)):
            name = array_name(tap, group, view)
            raise UnknownNameError("features", name, held, f"(split {self.inventory.name} holds no other)")
        if of_tap is None or final is None or of_tap is final:
            return tuple(array for array in (of_tap or final,) if array)
        for attribute in ("row_shape", "dtype", "tokens"):
            ours, finals = getattr(of_tap, attribute), getattr(final, attribute)
            if ours != finals and tap == DEFAULT_TAP:
                raise CacheError(
                    f"{self._folder}: arrays differ in {attribute}: {of_tap.name} {ours}, {final.name} {finals}"
                )
            if ours != finals:  # such as the hidden activations of an MLP, which are wider
                return (of_tap,)
        return of_tap, final

    @property
    def complete(self) -> bool:
        """Whether every block exists."""
        return len(self.committed) == self.token_array.num_blocks

    @property
    def fill(self) -> Any:
        """Stored value of rows that are not committed: NaN, or the code of a missing value."""
        return np.frombuffer(DTYPES[self.token_array.dtype].fill_bytes, self.token_array.stored_dtype)[0]

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Layer names that are cached, in order."""
        return tuple(layer for array in self.token_arrays for layer in array.layers)

    def locate(self, layer: str) -> Layer:
        """Find a layer.

        Raises:
            UnknownNameError: it is not cached.
        """
        for array in self.token_arrays:
            if layer in array.layers:
                return array, array.position(layer)
        raise UnknownNameError("layer", layer, self.layers, "(the cache holds no other)")

    def kind_indices(self, tokens: Sequence[str]) -> list[int]:
        """Return the indices of token kinds along their axis.

        Raises:
            UnknownNameError: one is not cached.
        """
        kinds = self.token_array.tokens
        for kind in tokens:
            if kind not in kinds:
                raise UnknownNameError("token kind", kind, kinds, "(the cache holds no other)")
        return [kinds.index(kind) for kind in tokens]

    def path_of(self, array: ArrayInfo, position: int, block: int) -> str:
        """Return the path of a chunk file."""
        # Without pathlib, which takes longer than opening the file.
        return os.sep.join((self._prefix, array.name, array.chunk_name(block, position)))

    @contextmanager
    def open(self, array: ArrayInfo, block: int, position: int = 0) -> Iterator[int]:
        """Open a chunk file for reading and hand out its file descriptor.

        Raises:
            CacheError: the file is missing or of the wrong size, it or its folder is a link, the array's Zarr
                metadata differ, or `read_into` failed within the context.
        """
        if array.name not in self._checked:
            folder = self._folder / array.name
            for link in (self._folder.parent, self._folder, folder):
                refuse_link(link)
            check_array_metadata(folder / METADATA_FILE, array)
            self._checked.add(array.name)
        path = self.path_of(array, position, block)
        try:
            descriptor, size = open_regular(path)
        except FileNotFoundError:
            raise CacheError(f"{path}: missing; the cache is damaged, extract it again") from None
        try:
            if size != array.chunk_bytes:
                raise CacheError(
                    f"{path}: {size} bytes, must be {array.chunk_bytes}; the cache is damaged, extract it again"
                )
            yield descriptor
        except ReadError as failure:
            raise CacheError(f"{path}: {failure}; see `featcache verify`") from None
        finally:
            os.close(descriptor)


class ReadError(OSError):
    """A file was truncated during a read, or its disk failed. The message does not name the file."""


def read_into(descriptor: int, target: Array, offset: int) -> None:
    """Fill the C-contiguous `target` with the bytes of a file from `offset` on.

    Raises:
        ReadError: the file cannot be read, or ends before the target is full.
    """
    view = target.reshape(-1).view(np.uint8).data
    while view:
        try:
            count = _read_some(descriptor, view, offset)
        except OSError as error:
            raise ReadError(f"cannot be read at byte {offset} ({error.strerror})") from None
        if not count:
            raise ReadError(f"was cut at byte {offset} while it was read")
        view, offset = view[count:], offset + count


def _read_some(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    os.lseek(
        descriptor, offset, os.SEEK_SET
    )  # the descriptor is never shared between threads, so seeking is safe
    piece = os.read(descriptor, min(len(view), 2**20))
    view[: len(piece)] = piece
    return len(piece)
