"""Rows out of the maps: one `np.take` over all layers, on as many threads as there are processors.

Shapes: B rows asked for, N samples, L layers, K token kinds, D width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featcache.store.machine import comes_from_disk, run_all, usable_cpus
from featcache.store.reading import guard
from featcache.store.reading.chunks import Array
from featcache.store.reading.decoding import Decode
from featcache.store.reading.maps import LayerMaps

# Most pieces that are copied with one call: their index takes 256 kB.
PIECES_PER_CALL = 2**15
# Pieces that are copied first, to see whether they come from memory or from disk.
PROBE_PIECES = 64
# From disk the threads only wait: they are there to keep requests in flight.
COLD_THREADS = 32
# If more than this part of the pages is wanted, reading all of them in order is faster than picking.
DENSE = 1 / 3
PAGE_BYTES = 4096
# Stored rows that are taken before they are decoded.
SCRATCH_BYTES = 2**17


def gather_mapped(
    maps: LayerMaps,
    rows: npt.NDArray[np.int64],
    layers: Sequence[str],
    kinds: Sequence[int] | None,
    out: Array,
    decode: Decode | None = None,
) -> None:
    """Copy rows out of mapped layers, in the order asked.

    Args:
        maps: has all of `layers` mapped.
        rows: ``[B]``.
        layers: layer names, in the order wanted.
        kinds: indices of the token kinds; None for all of them in their own order.
        out: C-contiguous ``[B, L, K, D]``, in the stored type without `decode`.
        decode: turns stored values into those of `out`.

    Raises:
        CacheError: a file was truncated, or its disk failed, during the copy.
    """
    offsets = maps.piece_offsets(layers, kinds)
    if not (len(rows) and len(offsets)):
        return
    source = maps.pieces(kinds is None)
    target = out.reshape(len(rows), len(offsets), source.shape[1])
    row_bytes = len(offsets) * source.shape[1] * source.itemsize
    # Stored values stay in the processor's cache until they are decoded.
    tile = max(1, SCRATCH_BYTES // row_bytes)
    piece_bytes = source.shape[1] * source.itemsize
    pieces_per_row = 1 if kinds is None else maps.num_kinds
    guard.install()

    def take(part: slice, stored: Array) -> None:
        index = (rows[part, None] * pieces_per_row + offsets).ravel()
        with maps.region:
            # With mode="raise", numpy would copy through a buffer; the rows have been checked.
            np.take(source, index, axis=0, out=stored.reshape(-1, source.shape[1]), mode="clip")

    def copy(part: slice) -> None:
        if decode is None:
            take(part, target[part])
            return
        scratch = np.empty((min(tile, part.stop - part.start), *target.shape[1:]), source.dtype)
        for start in range(part.start, part.stop, tile):
            piece = slice(start, min(start + tile, part.stop))
            stored = scratch[: piece.stop - piece.start]
            take(piece, stored)
            decode(stored.reshape(len(stored), *out.shape[1:]), out[piece])

    probe = min(len(rows), -(-PROBE_PIECES // len(offsets)))
    cold = comes_from_disk(lambda: copy(slice(0, probe)))
    if cold and len(rows) * (1 + PAGE_BYTES / piece_bytes) > DENSE * maps.num_samples:
        for layer in layers:
            maps.read_ahead(layer, 0, maps.num_samples)
    threads = COLD_THREADS if cold else usable_cpus()
    step = max(1, min(PIECES_PER_CALL // len(offsets), -(-len(rows) // threads)))
    parts = [slice(start, min(start + step, len(rows))) for start in range(probe, len(rows), step)]
    run_all(copy, parts, threads)
    maps.check_cuts(rows, layers)
