"""Records of the content of files: which image a file held, by the file's size, times and inode.

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
from featcache.store.errors import RequestError
from featcache.store.files import atomic_file
from featcache.store.planning import CONTENT_DIGEST_BYTES

Digests = npt.NDArray[np.uint8]
IMAGE_KEY_BYTES = CONTENT_DIGEST_BYTES + 1
"""A key tells what the backbone sees of an image: its content digest, and the EXIF orientation by which it is turned, 0 where images
are not turned. Zeros stand for no image."""
_FINGERPRINT_BYTES = 16
_VERSION = 1


def image_keys(digests: Digests, orientations: Digests | None) -> Digests:
    """Return the keys ``[N, 17]`` of images.

    Args:
        digests: ``[N, 16]``, content digests; zeros for images that did not decode.
        orientations: ``[N]``, EXIF orientations; None where images are not turned.
    """
    keys = np.zeros((len(digests), IMAGE_KEY_BYTES), np.uint8)
    keys[:, :CONTENT_DIGEST_BYTES] = digests
    if orientations is not None:
        keys[:, CONTENT_DIGEST_BYTES] = np.where(digests.any(1), orientations, 0)
    return keys


@dataclass(frozen=True)
class ContentRecords:
    """Fingerprints of M file states, and the keys of the images that the files held."""

    fingerprints: Digests
    """``[M, 16]``, as from `Source.row_fingerprints`."""
    images: Digests
    """``[M, 17]``, as from `image_keys`."""

    @classmethod
    def load(cls, key: str) -> Self:
        """Return the records that were kept while the cache `key` was made; none if there are none."""
        with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):  # they only save time
            with _path(key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                fingerprints, images = arrays["fingerprints"], arrays["images"]
            shapes = (len(fingerprints), _FINGERPRINT_BYTES), (len(fingerprints), IMAGE_KEY_BYTES)
            if (
                fingerprints.shape,
                images.shape,
            ) == shapes and fingerprints.dtype == images.dtype == np.uint8:
                return cls(fingerprints, images)
        return cls.none()

    @classmethod
    def none(cls) -> Self:
        """Return no records."""
        return cls(np.zeros((0, _FINGERPRINT_BYTES), np.uint8), np.zeros((0, IMAGE_KEY_BYTES), np.uint8))

    def keep(self, key: str) -> None:
        """Add the records to those of the cache `key`, if possible: without a home folder or on a full disk there are none."""
        if not len(self.fingerprints):
            return
        earlier = self.load(key)
        fingerprints = np.concatenate([self.fingerprints, earlier.fingerprints])
        images = np.concatenate([self.images, earlier.images])
        _, first = np.unique(_as_items(fingerprints), return_index=True)
        buffer = io.BytesIO()
        np.savez(buffer, fingerprints=fingerprints[first], images=images[first])
        with suppress(OSError, RequestError):
            path = _path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path, durable=False) as partial:
                partial.write_bytes(buffer.getvalue())

    def images_of(self, fingerprints: Digests) -> Digests:
        """Return the key ``[N, 17]`` of the image of every file state ``[N, 16]``; zeros where there is no record."""
        found = np.zeros((len(fingerprints), IMAGE_KEY_BYTES), np.uint8)
        places = DigestTable(self.fingerprints).find(fingerprints)
        known = (places >= 0) & fingerprints.any(1)
        found[known] = self.images[places[known]]
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
