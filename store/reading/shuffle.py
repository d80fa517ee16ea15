"""The order in which an epoch visits the rows: random, yet made of stretches that a disk reads well."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.store.errors import RequestError
from featcache.store.reading.maps import READ_AHEAD_BYTES

# A window is made of at least this many stretches, so that it mixes rows from all over the split.
STRETCHES = 16


@dataclass(frozen=True)
class Sizes:
    """How an epoch is cut, in rows."""

    batch: int
    window: int
    """A whole number of batches."""
    stretch: int

    @classmethod
    def within(cls, memory: int, batch_size: int, row_bytes: int, piece_bytes: int) -> "Sizes":
        """Choose the largest window of which two, and a batch, fit in the budget.

        Args:
            memory: the budget in bytes.
            batch_size: B.
            row_bytes: size of a row in the buffer: L * K * D values.
            piece_bytes: size of a row in one file.

        Raises:
            RequestError: a batch of fewer than one row, or a budget of fewer than three batches.
        """
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, not {batch_size}")
        batches = (memory // max(1, row_bytes) - batch_size) // (2 * batch_size)
        if batches < 1:
            raise RequestError(
                f"memory must hold 3 batches of {batch_size} rows, {3 * batch_size * row_bytes} bytes, not {memory}"
            )
        window = batches * batch_size
        return cls(batch_size, window, max(1, min(READ_AHEAD_BYTES // piece_bytes, window // STRETCHES)))


def epoch_order(
    rows: npt.NDArray[np.int64],
    stretch: int,
    window: int,
    seed: int | Sequence[int],
    part: tuple[int, int] = (0, 1),
) -> npt.NDArray[np.int64]:
    """Shuffle rows in windows.

    The rows are cut into stretches of neighbors, the stretches are shuffled over the whole split, and so many of them
    as fill a window are then shuffled row by row. Reading a window thus takes few and long reads, and its rows come from
    everywhere: in a split that is sorted by class, every window has most of the classes.

    Args:
        rows: ``[M]``, ascending.
        stretch: rows of a stretch.
        window: rows of a window.
        seed: the same seed gives the same order.
        part: ``(i, n)`` takes every n-th stretch from the i-th on, so that n workers share an epoch.

    Returns:
        ``[M]`` (about ``M / n`` with `part`): each row once.
    """
    generator = np.random.default_rng(seed)
    starts = np.arange(0, len(rows), stretch)
    chosen = generator.permutation(starts)[part[0] :: part[1]]
    order = np.concatenate([rows[start : start + stretch] for start in chosen] or [rows[:0]])
    for start in range(0, len(order), window):
        generator.shuffle(order[start : start + window])
    return order
