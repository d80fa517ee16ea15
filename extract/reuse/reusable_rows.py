"""Rows of other caches of the same backbone and settings, found by the images that they show."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.extraction.reuse.content_records import IMAGE_KEY_BYTES, Digests, DigestTable, image_keys
from featcache.store.arrays import ArrayInfo
from featcache.store.checking.verified_rows import VerifiedRows
from featcache.store.manifest import manifest_digest
from featcache.store.planning import CONTENT_DIGEST
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import Cache

Numbers = npt.NDArray[np.int64]
"""Numbers ``[N]`` of reusable rows, counted over all caches; -1 for none."""


@dataclass(frozen=True)
class _Part:
    """The reusable rows of one split of one cache."""

    cache: VerifiedRows
    split: str
    rows: npt.NDArray[np.int64]
    """``[M]``, rows of the split whose images decoded."""
    keys: Digests
    """``[M, 17]``, keys of the images."""


class ReusableRows:
    """The rows of some caches. A row counts only if its image decoded and the files that tell so have their digest.

    Args:
        caches: complete caches; where several hold an image, the first is taken.
        arrays: the token arrays that are taken over, with their layers; each split of the caches holds them.
        say: receives a line on each cache with damaged files.
    """

    def __init__(
        self, caches: Sequence[Cache], arrays: Sequence[ArrayInfo], say: Callable[[str], object]
    ) -> None:
        self._arrays = arrays
        self._say = say
        self._damaged: set[str] = set()
        self._parts = [part for cache in caches for part in _parts(VerifiedRows(cache))]
        self._ends = np.cumsum([len(part.rows) for part in self._parts], dtype=np.int64)
        empty = np.zeros((0, IMAGE_KEY_BYTES), np.uint8)
        self._table = DigestTable(np.concatenate([empty, *(part.keys for part in self._parts)]))
        self._labels = {
            part.cache.cache.key: f"{part.cache.cache.key}@{manifest_digest(part.cache.cache.manifest)}"
            for part in self._parts
        }

    def locate(self, keys: Digests) -> Numbers:
        """Return the row that shows each image, whether or not its features are intact; see `find`."""
        return np.where(keys.any(1), self._table.find(keys), -1)

    def find(self, keys: Digests) -> Numbers:
        """Return the row that shows each image, by keys ``[N, 17]``; zeros stand for no image.

        A row in a damaged block is not found. Its files are hashed now, unless a row of the block was wanted before.
        """
        numbers = self.locate(keys)
        for part, wanted, rows in self._by_part(numbers):
            blocks = rows // part.cache.cache.inventory.splits[part.split].block_rows
            distinct = np.unique(blocks).tolist()
            intact = part.cache.are_intact(part.split, distinct, self._arrays)
            damaged = [block for block, whole in zip(distinct, intact, strict=True) if not whole]
            if damaged:
                numbers[wanted[np.isin(blocks, damaged)]] = -1
                self._report(part.cache.cache)
        return numbers

    def read(self, numbers: Numbers) -> dict[str, Array]:
        """Return rows ``[M, L, K, D]`` of every array, in the stored type; all of `numbers` were found.

        Raises:
            CacheError: a file changed since it was checked.
        """
        values = {
            array.name: np.empty((len(numbers), len(array.layers), *array.row_shape), array.stored_dtype)
            for array in self._arrays
        }
        for part, wanted, rows in self._by_part(numbers):
            for array in self._arrays:
                values[array.name][wanted] = part.cache.read(part.split, rows, array)
        return values

    def origins(self, numbers: Numbers) -> Counter[str]:
        """Return how many rows come from which cache, as ``KEY@DIGEST`` with the digest of its manifest."""
        origins: Counter[str] = Counter()
        for part, wanted, _ in self._by_part(numbers):
            origins[self._labels[part.cache.cache.key]] += len(wanted)
        return origins

    def directories(self, numbers: Numbers) -> list[str]:
        """Return the folders of the caches that rows come from."""
        return list(dict.fromkeys(str(part.cache.cache.directory) for part, _, _ in self._by_part(numbers)))

    def _by_part(
        self, numbers: Numbers
    ) -> Iterator[tuple[_Part, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield each part with the places in `numbers` of its rows, and the rows."""
        owners = np.searchsorted(self._ends, numbers, "right")
        for index in np.unique(owners[numbers >= 0]).tolist():
            part = self._parts[index]
            wanted = np.flatnonzero((owners == index) & (numbers >= 0))
            yield part, wanted, part.rows[numbers[wanted] - (self._ends[index] - len(part.rows))]

    def _report(self, cache: Cache) -> None:
        if cache.key not in self._damaged:
            self._damaged.add(cache.key)
            self._say(
                f"files of {cache.directory} do not have their digest: rows in them are computed, not reused; "
                f"`featcache verify {cache.directory}` tells which"
            )


def _parts(rows: VerifiedRows) -> Iterator[_Part]:
    for split, inventory in rows.cache.inventory.splits.items():
        if CONTENT_DIGEST in inventory.arrays:
            digests, told = rows.column(split, CONTENT_DIGEST)
            valid, known = rows.column(split, "valid")
            places = np.flatnonzero(told & known & valid.astype(np.bool_) & digests.any(1))
            manifest = rows.cache.manifest
            orientations = manifest.orientations(split)[places] if manifest.spec.backbone.upright else None
            yield _Part(rows, split, places, image_keys(digests[places], orientations))
