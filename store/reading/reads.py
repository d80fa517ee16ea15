"""Rows out of the files by plain reads: for whole layers, and for systems and caches that cannot be mapped.

Shapes: B rows asked for, N samples, L layers, K token kinds, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from featcache.store.arrays import DTYPES
from featcache.store.inventory import Block
from featcache.store.machine import comes_from_disk, run_all, usable_cpus
from featcache.store.reading.chunks import Array, ChunkFiles, Layer, read_into
from featcache.store.reading.decoding import Decode

Job = tuple[Block, int, Layer]
"""A block, the position of a layer in the buffer, and where that layer lies."""

# More than processors: from disk, a thread waits most of the time.
COLD_THREADS = 8
# Two rows with less than this between them are read in one go.
GAP_BYTES = 2**15
# Largest piece that goes by way of a scratch buffer: it should stay in the processor's cache.
SCRATCH_BYTES = 2**20


def read_all(
    files: ChunkFiles,
    layers: Sequence[str],
    kinds: Sequence[int] | None,
    out: Array,
    decodes: Sequence[Decode] | None = None,
) -> None:
    """Read all committed rows of some layers; straight into `out` where its memory is laid out like the file.

    Args:
        files: the chunk files.
        layers: layer names, in the order wanted.
        kinds: indices of the token kinds; None for all of them in their own order.
        out: ``[N, L, K, D]``, in the stored type without `decodes`.
        decodes: for every layer, what turns its stored values into those of `out`.
    """

    def read(job: Job) -> None:
        block, position, (array, index) = job
        with files.open(array, block.index, index) as descriptor:
            target = out[block.start : block.stop, position]
            if kinds is None and target.flags.c_contiguous and decodes is None:
                read_into(descriptor, target, 0)
                return
            step = max(1, SCRATCH_BYTES // _row_bytes(files))
            for start in range(0, block.rows, step):
                scratch = _read_rows(files, descriptor, start, min(start + step, block.rows))
                picked = scratch if kinds is None else scratch[:, kinds]
                if decodes is None:
                    target[start : start + step] = picked
                else:
                    decodes[position](picked, target[start : start + step])

    _run(files, read, layers)


def read_rows(
    files: ChunkFiles,
    rows: npt.NDArray[np.int64],
    layers: Sequence[str],
    kinds: Sequence[int] | None,
    out: Array,
    decodes: Sequence[Decode] | None = None,
) -> None:
    """Read some committed rows, in the order asked; rows that are not committed are left alone.

    Rows that lie close together in a file are read in one go. Arguments as for `read_all`, with:

    Args:
        rows: ``[B]``.
        out: ``[B, L, K, D]``.
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    longest = max(1, SCRATCH_BYTES // _row_bytes(files))

    def read(job: Job) -> None:
        block, position, (array, index) = job
        first, last = np.searchsorted(ordered, (block.start, block.stop))
        if first == last:
            return
        inside, positions = ordered[first:last] - block.start, order[first:last]
        with files.open(array, block.index, index) as descriptor:
            for part in spans(inside, 1 + GAP_BYTES // _row_bytes(files), longest):
                block_rows = inside[part]
                scratch = _read_rows(files, descriptor, int(block_rows[0]), int(block_rows[-1]) + 1)
                # Rows without gaps, as in a window of batches, need no copy of their own. A row that is asked for twice can make
                # up for a gap, so their number does not tell.
                picked = scratch if (np.diff(block_rows) == 1).all() else scratch[block_rows - block_rows[0]]
                picked = picked if kinds is None else picked[:, kinds]
                if decodes is not None:
                    stored, picked = picked, np.empty(picked.shape, out.dtype)
                    decodes[position](stored, picked)
                out[positions[part], position] = picked

    _run(files, read, layers)


def spans(ordered: npt.NDArray[np.int64], gap: int, longest: int) -> Iterator[slice]:
    """Cut ascending rows where two neighbors are more than `gap` apart, and after `longest` rows of the file."""
    breaks = (np.diff(ordered) > gap) | (np.diff(ordered // longest) > 0)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(ordered)]
    for start, stop in pairwise(edges):
        if start < stop:
            yield slice(start, stop)


def read_column(files: ChunkFiles, name: str) -> Array:
    """Read an array without layers: ``[N, ...]``, the fill value in rows that are not committed."""
    array = files.inventory.arrays[name]
    for block in files.committed[:1]:
        with files.open(array, block.index):
            pass  # a forged shape is refused before there is memory for it
    out = np.full(array.shape, DTYPES[array.dtype].fill, array.stored_dtype)
    for block in files.committed:
        with files.open(array, block.index) as descriptor:
            read_into(descriptor, out[block.start : block.stop], 0)
    return out


def _run(files: ChunkFiles, read: Callable[[Job], None], layers: Sequence[str]) -> None:
    located = [files.locate(layer) for layer in layers]
    # Layer by layer within a block: neighboring parts of a row-major buffer are filled at about the same time.
    jobs = [(block, position, layer) for block in files.committed for position, layer in enumerate(located)]
    # From memory, threads pass the interpreter's lock around for longer than it takes to copy a small file.
    threads = usable_cpus() if files.token_array.chunk_bytes >= SCRATCH_BYTES else 1
    if jobs and comes_from_disk(lambda: read(jobs[0])):
        threads = COLD_THREADS
    run_all(read, jobs[1:], threads)


def _row_bytes(files: ChunkFiles) -> int:
    return files.token_array.chunk_bytes // files.token_array.block_rows


def _read_rows(files: ChunkFiles, descriptor: int, start: int, stop: int) -> Array:
    scratch = np.empty((stop - start, *files.token_array.row_shape), files.token_array.stored_dtype)
    read_into(descriptor, scratch, start * _row_bytes(files))
    return scratch
