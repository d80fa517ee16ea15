"""The rows of a cache to recompute, in batches."""

import random

import numpy as np

from featcache.store.errors import RequestError
from featcache.store.reading.reader import Cache

Batch = tuple[str, list[int]]
"""Name of a split, and rows of it."""


def choose_batches(cache: Cache, samples: int, seed: int, *, whole: bool) -> list[Batch]:
    """Return random valid rows of all splits, in batches of the extraction's size at most.

    Args:
        cache: the cache.
        samples: number of rows; all valid ones if there are fewer.
        seed: fixes the choice.
        whole: take whole batches of the extraction, until there are at least so many rows. A pass over the same batch gives the same
            values on the same device; where batches hold images that did not decode, single rows are taken instead.

    Raises:
        RequestError: no row is valid.
    """
    valid = {split: cache[split].valid() for split in cache.inventory.splits}
    if not any(rows.any() for rows in valid.values()):
        raise RequestError(f"{cache.directory} holds no valid row to recompute; finish the extraction first")
    if whole and (batches := _whole_batches(cache, valid)):
        random.Random(seed).shuffle(batches)
        chosen: list[Batch] = []
        while batches and sum(len(rows) for _, rows in chosen) < samples:
            chosen.append(batches.pop())
        return sorted(chosen)
    places = [(split, int(row)) for split, rows in valid.items() for row in np.flatnonzero(rows)]
    picked = sorted(random.Random(seed).sample(places, min(samples, len(places))))
    size = cache.manifest.batch_size
    batches = []
    for split in dict.fromkeys(split for split, _ in picked):
        rows = [row for name, row in picked if name == split]
        batches += [(split, rows[start : start + size]) for start in range(0, len(rows), size)]
    return batches


def _whole_batches(cache: Cache, valid: dict[str, np.ndarray]) -> list[Batch]:
    """Return the batches that the extraction ran, without those that hold an image that did not decode."""
    size, batches = cache.manifest.batch_size, []
    for split in cache.inventory.splits.values():
        for block in split.blocks():
            for start in range(block.start, block.stop, size):
                stop = min(start + size, block.stop)
                if valid[split.name][start:stop].all():
                    batches.append((split.name, list(range(start, stop))))
    return batches
