"""Records of the content of files: which decoded image a file held, by its size, times and inode.

A record lets a later run take the features of an unchanged file over without decoding it. It is kept in the data folder of this
machine, apart from the cache, because it means nothing elsewhere. Without it, files are decoded and their digests compared.
"""

import io
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.data_folders import derived_path
from featcache.store.files import atomic_file
from featcache.store.planning import CONTENT_DIGEST_BYTES

Digests = npt.NDArray[np.uint8]
_VERSION = 1


@dataclass(frozen=True)
class ContentRecords:
    """Fingerprints of M file states, and the digests of the images that the files held."""

    fingerprints: Digests
    """``[M, 16]``, as from `Source.row_fingerprints`."""
    contents: Digests
    """``[M, 16]``, content digests."""

    @classmethod
    def load(cls, key: str) -> Self:
        """Return the records that were kept while the cache `key` was made; none if there are none."""
        with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):  # they only save time
            with _path(key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                fingerprints, contents = arrays["fingerprints"], arrays["contents"]
            shape = (len(fingerprints), CONTENT_DIGEST_BYTES)
            if (
                fingerprints.shape == contents.shape == shape
                and fingerprints.dtype == contents.dtype == np.uint8
            ):
                return cls(fingerprints, contents)
        return cls(
            np.zeros((0, CONTENT_DIGEST_BYTES), np.uint8), np.zeros((0, CONTENT_DIGEST_BYTES), np.uint8)
        )

    def keep(self, key: str) -> None:
        """Add the records to those of the cache `key`, if possible."""
        earlier = self.load(key)
        fingerprints = np.concatenate([self.fingerprints, earlier.fingerprints])
        contents = np.concatenate([self.contents, earlier.contents])
        _, first = np.unique(_as_items(fingerprints), return_index=True)
        buffer = io.BytesIO()
        np.savez(buffer, fingerprints=fingerprints[first], contents=contents[first])
        path = _path(key)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path, durable=False) as partial:
                partial.write_bytes(buffer.getvalue())

    def contents_of(self, fingerprints: Digests) -> Digests:
        """Return the content digest of every file state ``[N, 16]``; zeros where there is no record."""
        found = np.zeros_like(fingerprints)
        places = DigestTable(self.fingerprints).find(fingerprints)
        known = (places >= 0) & fingerprints.any(1)
        found[known] = self.contents[places[known]]
        return found


class DigestTable:
    """Finds digests in a table.

    Args:
        digests: ``[M, bytes]``.
    """

    def __init__(self, digests: Digests) -> None:
        items = _as_items(digests)
        self._order = np.argsort(items, kind="stable")
        self._sorted = items[self._order]

    def find(self, wanted: Digests) -> npt.NDArray[np.int64]:
        """Return the row of the table that equals each of `wanted` ``[N, bytes]``, the first of equal ones; -1 if none does."""
        if not len(self._sorted) or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        sought = _as_items(wanted)
        places = np.minimum(np.searchsorted(self._sorted, sought), len(self._sorted) - 1)
        return np.where(self._sorted[places] == sought, self._order[places], -1)


def _as_items(digests: Digests) -> npt.NDArray[np.bytes_]:
    """Return ``[N, bytes]`` as ``[N]`` items that compare as a whole."""
    return np.ascontiguousarray(digests).view(f"S{digests.shape[1]}").ravel()


def _path(key: str) -> Path:
    return derived_path("contents", f"{_VERSION} {key}", f"{key}.npz")
