"""Shuffled mini-batches of a split of any size, within a budget of memory.

While the batches of one window are handed out, the next window is on its way from the disk. With maps it goes to the page
cache, which the system takes back when it needs the memory; without, into a buffer that counts against the budget.

Shapes: B rows of a batch, W rows of a window, L layers, K token kinds, D width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from featcache.store.errors import RequestError
from featcache.store.machine import available_memory, comes_from_disk
from featcache.store.reading.chunks import Array
from featcache.store.reading.copying import RowCopier, Rows, Selection
from featcache.store.reading.decoding import Decode
from featcache.store.reading.maps import LayerMaps
from featcache.store.reading.reads import spans
from featcache.store.reading.shuffle import Sizes, epoch_order

# Rows that are looked at to see whether a window has to be read from disk.
SAMPLE_ROWS = 32

Batch = tuple[Rows, Array]
"""Rows ``[B]`` and their features ``[B, L, K, D]``."""
Copy = Callable[[Rows, Array], None]
"""Fills a buffer ``[B, L, K, D]`` with the features of rows ``[B]``."""


class Source(Protocol):
    """Interface of the origin of windows."""

    def fetch(self, rows: Rows) -> Copy:
        """Bring the rows of a window near, and return what copies batches out of it. Runs on a thread of its own."""

    def release(self) -> None:
        """Release a window when its batches have been handed out."""


@dataclass(frozen=True)
class MappedSource:
    """Windows in the page cache."""

    maps: LayerMaps
    layers: Sequence[str]
    copy: Copy
    buffer: Callable[[int], Array]
    """Return an empty buffer for N rows."""
    keep: bool
    """Leave pages mapped when a window is done."""

    def fetch(self, rows: Rows) -> Copy:
        """Ask the system to read ahead if a sample of the rows comes from disk, and copy from the maps."""
        sample = rows[: len(rows) : -(-len(rows) // SAMPLE_ROWS)]
        if not comes_from_disk(lambda: self.copy(sample, self.buffer(len(sample)))):
            return self.copy
        ordered = np.sort(rows)
        parts = [ordered[part] for part in spans(ordered, 1, len(ordered))]
        for layer in self.layers:
            for part in parts:
                self.maps.read_ahead(layer, int(part[0]), int(part[-1]) + 1)
        return self.copy

    def release(self) -> None:
        """Give the mapped pages back, so that they do not count as memory of this process."""
        if not self.keep:
            self.maps.drop_pages()


@dataclass(frozen=True)
class BufferedSource:
    """Windows in a buffer of their own."""

    copy: Copy
    buffer: Callable[[int], Array]
    decode: Decode | None = None
    """Turns the stored values of a window into those of a batch."""

    def fetch(self, rows: Rows) -> Copy:
        """Read the window, in the order of the files."""
        ordered = np.sort(rows)
        window = self.buffer(len(rows))
        self.copy(ordered, window)

        def take(rows: Rows, out: Array) -> None:
            stored = out if self.decode is None else np.empty(out.shape, window.dtype)
            np.take(window, np.searchsorted(ordered, rows), axis=0, out=stored, mode="clip")
            if self.decode is not None:
                self.decode(stored, out)

        return take

    def release(self) -> None:
        """Do nothing: the buffer goes when nobody holds it."""


class BatchOptions(NamedTuple):
    """Arguments of `SplitReader.batches` that say how an epoch is cut."""

    batch_size: int
    seed: int | Sequence[int]
    memory: int
    part: tuple[int, int]


def shuffled_batches(
    copier: RowCopier,
    selection: Selection,
    rows: Rows,
    maps: LayerMaps | None,
    options: BatchOptions,
    out: Array | None,
    dtype: np.dtype[np.generic],
) -> Iterator[Batch]:
    """Check the arguments of `SplitReader.batches`, and return the iterator; batches have the numpy type `dtype`."""
    array, shape = copier.files.token_array, selection.row_shape(copier.files)
    row_bytes = math.prod(shape) * array.stored_dtype.itemsize
    piece_bytes = array.chunk_bytes // array.block_rows
    # Windows hold stored values; a batch may take more, or less.
    decoded = options.batch_size * math.prod(shape) * (dtype.itemsize - array.stored_dtype.itemsize)
    sizes = Sizes.within(options.memory - decoded, options.batch_size, row_bytes, piece_bytes)
    if not 0 <= options.part[0] < options.part[1]:
        raise RequestError(f"part must be (i, n) with i from 0 to n - 1, not {options.part}")
    order = epoch_order(rows, sizes.stretch, sizes.window, options.seed, options.part)

    def buffer(count: int) -> Array:
        return np.empty((count, *shape), array.stored_dtype)

    def batch_buffer(count: int) -> Array:
        return np.empty((count, *shape), dtype) if out is None else out[:count]

    def copy(rows: Rows, target: Array) -> None:
        copier.copy(rows, selection, target, maps)

    decode = copier.types.decode(selection.layers, selection.kinds, dtype)
    source: Source = BufferedSource(copy, buffer, decode)
    if maps is not None:
        keep = len(rows) * row_bytes <= available_memory() // 2
        source = MappedSource(maps, selection.layers, copy, buffer, keep)
    return _stream(source, order, sizes, batch_buffer)


def _stream(source: Source, order: Rows, sizes: Sizes, buffer: Callable[[int], Array]) -> Iterator[Batch]:
    """Hand out the batches of an epoch; `buffer` returns an empty batch of N rows."""
    # Takes milliseconds to import, and `featcache ls` does not need it.
    from concurrent.futures import ThreadPoolExecutor

    windows = [order[start : start + sizes.window] for start in range(0, len(order), sizes.window)]
    with ThreadPoolExecutor(1) as reader:
        upcoming = [reader.submit(source.fetch, window) for window in windows[:1]]
        for number, window in enumerate(windows):
            copy = upcoming.pop().result()
            # Only now: the buffer of the window before is free.
            upcoming = [reader.submit(source.fetch, rows) for rows in windows[number + 1 : number + 2]]
            for start in range(0, len(window), sizes.batch):
                # The order within a batch is free, and ascending rows are found faster.
                rows = np.sort(window[start : start + sizes.batch])
                out = buffer(len(rows))
                copy(rows, out)
                yield rows, out
            source.release()
