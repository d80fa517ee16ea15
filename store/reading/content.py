"""Digests of decoded images: the content of a split, and the images that two splits share."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from featcache.store.files import JsonObject, sha256_hex
from featcache.store.reading.reader import Cache
from featcache.store.reading.split import SplitReader

EXAMPLES = 3


@dataclass(frozen=True)
class SharedImages:
    """Images of one split that are in another one too, pixel for pixel."""

    splits: tuple[str, str]
    count: int
    """Samples of the second split whose image is in the first."""
    examples: tuple[str, ...]
    """Ids of a few of them."""

    def to_dict(self) -> JsonObject:
        """Return this as plain JSON values."""
        return {"splits": list(self.splits), "count": self.count, "examples": list(self.examples)}

    def __str__(self) -> str:
        first, second = self.splits
        some = ", ".join(self.examples)
        return f"{self.count} images of {second} are in {first} too, pixel for pixel ({some}{', ...' if self.count > EXAMPLES else ''})"


def content_digest(reader: SplitReader) -> str | None:
    """Return SHA-256 over the digests of a split's decoded images, in row order; None if the cache does not have them."""
    digests = reader.content_digests()
    return None if digests is None else sha256_hex(digests.tobytes())


def shared_images(cache: Cache) -> Iterator[SharedImages]:
    """Yield images that are in two splits of a cache: scores on the second are too good by them."""
    for pair in combinations(cache.inventory.splits, 2):
        first, second = (cache[name].content_digests() for name in pair)
        if first is None or second is None:
            continue
        rows = np.flatnonzero(np.isin(_as_items(second), _as_items(first)) & cache[pair[1]].valid())
        if rows.size:
            ids = cache[pair[1]].sample_ids()
            yield SharedImages(pair, int(rows.size), tuple(ids[row] for row in rows[:EXAMPLES]))


def _as_items(digests: np.ndarray) -> np.ndarray:
    """Return ``[N, 16]`` bytes as ``[N]`` items that compare as a whole; zeros, which stand for no image, stay apart by `valid`."""
    return np.ascontiguousarray(digests).view(f"S{digests.shape[1]}").ravel()
