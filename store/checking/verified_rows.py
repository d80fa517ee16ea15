"""Rows of a complete cache, read only from chunk files whose digest was checked before."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.store.arrays import ArrayInfo
from featcache.store.checking.digests import sha256_files
from featcache.store.errors import CacheError
from featcache.store.journal import FEATURES
from featcache.store.machine import usable_cpus
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import Cache
from featcache.store.regular_files import open_regular


class VerifiedRows:
    """Reads rows of one complete cache. Files of a block are hashed once, when a row of the block is first wanted.

    Args:
        cache: the cache.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._folder = cache.directory / FEATURES
        self._files = {(r.block.split, r.block.index): r.files for r in cache.manifest.blocks}
        self._intact: dict[str, bool] = {}

    def column(self, split: str, name: str) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return an array without layers ``[N, ...]``, and a mask ``[N]`` of the rows whose file has its digest."""
        inventory = self.cache.inventory.splits[split]
        array = inventory.arrays[name]
        values = np.zeros(array.shape, array.stored_dtype)
        intact = np.zeros(inventory.num_samples, np.bool_)
        self._check(path for block in inventory.blocks() for path in self._paths(split, array, block.index))
        for block in inventory.blocks():
            (path,) = self._paths(split, array, block.index)
            if self._intact[path]:
                rows = np.arange(block.start, block.stop)
                values[rows], intact[rows] = self._read(path, array, rows - block.start), True
        return values, intact

    def are_intact(self, split: str, blocks: Sequence[int], arrays: Collection[ArrayInfo]) -> list[bool]:
        """Return for each of `blocks` whether all files of some arrays have their digest.

        Args:
            split: name of the split.
            blocks: indices of blocks.
            arrays: the arrays, with the layers that are wanted.
        """
        wanted = [[path for array in arrays for path in self._paths(split, array, block)] for block in blocks]
        self._check(path for paths in wanted for path in paths)
        return [all(self._intact[path] for path in paths) for paths in wanted]

    def read(self, split: str, rows: npt.NDArray[np.int64], array: ArrayInfo) -> Array:
        """Return rows ``[M, L, K, D]`` of an array, in the order asked, in the stored type.

        Args:
            split: name of the split.
            rows: int64 ``[M]``; their blocks are intact.
            array: the array, with the layers that are wanted, in order.

        Raises:
            CacheError: a file became shorter since it was checked.
        """
        out = np.empty((len(rows), len(array.layers), *array.row_shape), array.stored_dtype)
        block_rows = self.cache.inventory.splits[split].block_rows
        blocks = rows // block_rows
        for block in np.unique(blocks).tolist():
            wanted = np.flatnonzero(blocks == block)
            inside = rows[wanted] - block * block_rows
            for place, path in enumerate(self._paths(split, array, block)):
                out[wanted, place] = self._read(path, array, inside)
        return out

    def _check(self, paths: Iterator[str]) -> None:
        """Hash the files among `paths` that were not hashed before."""
        new = [path for path in dict.fromkeys(paths) if path not in self._intact]
        records = (
            {path: record for files in self._files.values() for path, record in files.items()} if new else {}
        )
        found = sha256_files([self._folder / path for path in new], usable_cpus())
        for path, digest in zip(new, found, strict=True):
            self._intact[path] = path in records and digest == records[path].sha256

    @staticmethod
    def _paths(split: str, array: ArrayInfo, block: int) -> list[str]:
        return [f"{split}/{array.name}/{name}" for name in array.chunk_names(block)]

    def _read(self, path: str, array: ArrayInfo, rows: npt.NDArray[np.int64]) -> Array:
        """Return rows of one chunk file, by their place in it."""
        file = self._folder / path
        row_bytes = array.chunk_bytes // array.block_rows
        first, last = int(rows.min()), int(rows.max())
        content = _pread(file, (last + 1 - first) * row_bytes, first * row_bytes)
        values = np.frombuffer(content, array.stored_dtype).reshape(last + 1 - first, *array.row_shape)
        return values[rows - first]


def _pread(file: Path, size: int, offset: int) -> bytearray:
    content, done = bytearray(size), 0
    descriptor, _ = open_regular(file)
    with open(descriptor, "rb", buffering=0):
        while done < size:
            count = os.preadv(descriptor, [memoryview(content)[done:]], offset + done)
            if not count:
                raise CacheError(
                    f"{file} became shorter while it was read; run `featcache verify` on its cache"
                )
            done += count
    return content
