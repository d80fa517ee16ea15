"""All layers of a split as one array: the chunk files are mapped side by side into one range of addresses.

A gather over many files and layers is then a single `np.take`, which is twice as fast as going from file to file, and
a layer is one contiguous array. This needs a system that can guard maps against truncated files (`guard`), and chunk files
that fill whole pages (all but tiny ones do); otherwise files are read.

Shapes: N samples, K token kinds, D width, P the number of rows with the padding of the last block.
"""

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from featcache.store.arrays import DTYPES
from featcache.store.errors import CacheError
from featcache.store.reading import guard
from featcache.store.reading.chunks import Array, ChunkFiles
from featcache.store.reading.libc import MAP_FIXED, advise, map_memory, unmap

# The kernel cuts one request for read-ahead to the device's limit, which is at least this on common systems.
READ_AHEAD_BYTES = 128 * 1024


class LayerMaps:
    """Read-only maps of the layers of one split. A layer is mapped when it is first asked for.

    Rows that are not committed read as zero: whoever hands them out has to fill them. Must not be pickled; works
    after a fork. Unmapped when the last array over it is gone.

    Args:
        files: the chunk files.

    Raises:
        OSError: this system, or a limit on address space, does not allow it.
    """

    def __init__(self, files: ChunkFiles) -> None:
        array = files.token_array
        self._files = files
        self._slots = {layer: slot for slot, layer in enumerate(files.layers)}
        self._padded_rows = array.num_blocks * array.block_rows
        self.num_samples = files.inventory.num_samples
        self.num_kinds, self._width = array.row_shape
        self._chunk_bytes = array.chunk_bytes
        self._layer_bytes = array.num_blocks * array.chunk_bytes
        self._path_of = _Names(files, array.num_blocks)
        self._mapped: set[str] = set()
        self._lock = threading.Lock()
        size = len(self._slots) * self._layer_bytes
        # Readable zeros, so that no index can hit an unmapped page.
        self._address = self._map(None, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        buffer = (ctypes.c_char * size).from_address(self._address)
        self.region = guard.Region(
            self._address,
            size,
            array.chunk_bytes,
            DTYPES[array.dtype].fill_bytes,
            self._path_of,
        )
        self._unmap = weakref.finalize(buffer, _unmap, self.region)
        self._unmap.atexit = False
        guard.install()
        flat = np.frombuffer(memoryview(buffer).toreadonly(), array.stored_dtype)
        self._vectors = flat.reshape(-1, self._width)  # [L * P * K, D]
        self._bytes = flat.view(np.uint8)
        self._block_rows = array.block_rows
        self._last_bytes = np.zeros((len(self._slots), array.num_blocks), np.uint8)
        self._is_committed = np.zeros(array.num_blocks, np.bool_)
        self._is_committed[[block.index for block in files.committed]] = True

    @staticmethod
    def supported(files: ChunkFiles) -> bool:
        """Return whether these files can be mapped side by side here."""
        whole_pages = files.token_array.chunk_bytes % mmap.ALLOCATIONGRANULARITY == 0
        return whole_pages and guard.supported() and hasattr(mmap, "MADV_RANDOM")

    def ensure(self, layers: Iterable[str]) -> None:
        """Map the layers that are not mapped yet.

        Raises:
            UnknownNameError: a layer is not cached.
            CacheError: a file is missing or of the wrong size.
            OSError: the system refuses; the object must not be used any more.
        """
        with self._lock:
            for layer in layers:
                if layer not in self._mapped:
                    self._map_layer(layer)
                    self._mapped.add(layer)

    def layer(self, layer: str) -> Array:
        """Return one mapped layer: ``[N, K, D]``, read-only."""
        rows = self._vectors.reshape(-1, self.num_kinds, self._width)
        start = self._slots[layer] * self._padded_rows
        return rows[start : start + self.num_samples]

    def pieces(self, whole_rows: bool) -> Array:
        """Return everything that is mapped, as ``[L * P, K * D]`` (whole rows of a layer) or ``[L * P * K, D]``."""
        return self._vectors.reshape(-1, self.num_kinds * self._width) if whole_rows else self._vectors

    def piece_offsets(self, layers: Sequence[str], kinds: Sequence[int] | None) -> npt.NDArray[np.int64]:
        """Index of the pieces of row 0, one for each layer (`kinds` is None: whole rows) or layer and kind."""
        starts = np.array([self._slots[layer] for layer in layers], np.int64) * self._padded_rows
        if kinds is None:
            return starts
        return (starts[:, None] * self.num_kinds + np.array(kinds, np.int64)).ravel()

    def read_ahead(self, layer: str, start: int, stop: int) -> None:
        """Ask the kernel to bring rows `start` to `stop` of a mapped layer into the page cache."""
        row_bytes = self._layer_bytes // self._padded_rows
        base = self._address + self._slots[layer] * self._layer_bytes
        first = base + start * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        for address in range(first, base + stop * row_bytes, READ_AHEAD_BYTES):
            size = min(READ_AHEAD_BYTES, base + stop * row_bytes - address)
            advise(address, size, mmap.MADV_WILLNEED)

    def drop_pages(self) -> None:
        """Give the mapped pages back, so that they no longer count as memory of this process; maps stay valid."""
        advise(self._address, len(self._slots) * self._layer_bytes, mmap.MADV_DONTNEED)

    def check_cuts(self, rows: npt.NDArray[np.int64], layers: Sequence[str]) -> None:
        """Refuse what was read of rows ``[B]`` if one of the files was cut in the meantime.

        In the page where a cut file ends, the system reads zeros without a signal. So the last byte of each file is read:
        behind a cut page, which the guard notes, or in it, where the byte is not what it was when the file was mapped.

        Raises:
            CacheError: a file was cut or overwritten, or its disk failed.
        """
        num_blocks = self._last_bytes.shape[1]
        blocks = np.arange(num_blocks) if len(rows) >= num_blocks else np.unique(rows // self._block_rows)
        slots = np.array([self._slots[layer] for layer in layers], np.int64)[:, None]
        with self.region:
            last_bytes = self._bytes[slots * self._layer_bytes + (blocks + 1) * self._chunk_bytes - 1]
        self.region.check()
        expected = self._last_bytes[slots, blocks]
        # A byte that is 0 as it should be tells nothing; blocks that are not committed have no file.
        doubtful = ((last_bytes != expected) | (expected == 0)) & self._is_committed[blocks]
        for slot, block in np.argwhere(doubtful).tolist():
            piece = int(slots[slot, 0]) * num_blocks + int(blocks[block])
            self._refuse_shorter(piece)
            if (
                last_bytes[slot, block] != expected[slot, block]
            ):  # overwritten, or cut and then removed or replaced
                raise self.region.error(piece)

    def _refuse_shorter(self, piece: int) -> None:
        path = self._path_of(piece)
        try:
            size = os.stat(path).st_size
        except OSError:
            return  # a file that was only removed keeps its content for those who have mapped it
        if size < self._chunk_bytes:
            raise CacheError(
                f"{path}: was cut while it was read, to {size} of {self._chunk_bytes} bytes "
                "(`featcache verify` says what is damaged)"
            )

    def _map_layer(self, layer: str) -> None:
        array, index = self._files.locate(layer)
        start = self._address + self._slots[layer] * self._layer_bytes
        for block in self._files.committed:
            with self._files.open(array, block.index, index) as descriptor:
                address = start + block.index * array.chunk_bytes
                self._map(address, array.chunk_bytes, mmap.MAP_SHARED | MAP_FIXED, descriptor)
                last_byte = os.pread(descriptor, 1, array.chunk_bytes - 1)
                self._last_bytes[self._slots[layer], block.index] = last_byte[0] if last_byte else 0
        # Rows are read at random: the kernel's read-ahead would read the whole file for a few of them.
        advise(start, self._layer_bytes, mmap.MADV_RANDOM)

    def _map(self, address: int | None, size: int, flags: int, descriptor: int) -> int:
        try:
            return map_memory(address, size, mmap.PROT_READ, flags, descriptor)
        except OSError:
            # A failure may leave a hole, which unmapping the whole range later could take from someone else.
            if address is not None:
                self._unmap.detach()
                self.region.release()
            raise


class _Names:
    """Paths of the chunk files by their number in the range; keeps no arrays alive."""

    def __init__(self, files: ChunkFiles, num_blocks: int) -> None:
        self._files = files
        self._num_blocks = num_blocks

    def __call__(self, piece: int) -> str:
        slot, block = divmod(piece, self._num_blocks)
        return self._files.path_of(*self._files.locate(self._files.layers[slot]), block)


def _unmap(region: guard.Region) -> None:
    region.release()
    unmap(region.address, region.size)
