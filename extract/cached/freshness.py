"""Check whether the images on disk are still the ones that a cache was made from.

The identity of a dataset holds ids, sizes and labels, so a file that is overwritten with one of the same size keeps it.
The states of all files (size, mtime, ctime) are kept with the request. Only where a state differs, the image is decoded and
its digest compared with the one in the cache, so a file that was merely touched or copied costs one decoding.
"""

import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.base import Source
from featcache.extraction.sources.file_states import FileStates, Mask
from featcache.extraction.sources.pixels import facts_of
from featcache.store.corrections import FIELD as CORRECTIONS
from featcache.store.errors import CacheError, DatasetError, UnavailableError
from featcache.store.files import sha256_hex
from featcache.store.planning import CONTENT_DIGEST_BYTES
from featcache.store.progress import Reporter
from featcache.store.reading.reader import Cache
from featcache.store.reading.split import SplitReader
from featcache.store.requests import record_files, recorded_files

REPLACED = "replaced"
"""Field of a dataset's identity: digest over the images that differ from those of the previous cache."""
_EXAMPLES = 3
_LOOKED_AT = 32


class Freshness:
    """Compares the files of one dataset with the files that caches were made from.

    Args:
        source: the dataset.
        reporter: receives a message before a long comparison.
    """

    def __init__(self, source: Source, reporter: Reporter) -> None:
        self._source = source
        self._reporter = reporter
        self._states: FileStates | None = source.file_states()

    def record(self, directory: Path) -> None:
        """Keep the states of the files with the cache at `directory`, which is, or will be, made from them."""
        self._record(directory, "")

    def replaced(
        self,
        directory: Path,
        provenance: Mapping[str, Any],
        cache: Cache,
        readers: Mapping[str, SplitReader],
    ) -> str:
        """Compare the images of all files that may have been exchanged since a cache was made.

        Args:
            directory: of the cache.
            provenance: of the cache; empty while it is not complete.
            cache: the cache.
            readers: of its splits.

        Returns:
            Digest over ids and contents of the images that were replaced; empty if there are none.

        Raises:
            UnavailableError: a file cannot be read.
        """
        old = bool(provenance) and CORRECTIONS not in provenance
        if self._states is None:
            return self._digest(directory, list(self._refused(readers)) if old else [])
        known = recorded_files(directory)
        for record in known:
            if record.get("fingerprints") == self._states.fingerprints:
                found = record.get(REPLACED)
                return found if isinstance(found, str) else ""
        suspects = self._suspects(self._states, known, provenance)
        others = list(self._others(suspects, cache, readers)) if suspects.any() else []
        if old and not others and not self._states.per_row:
            others = list(self._refused(readers))
        digest = self._digest(directory, others)
        self._record(directory, digest)
        return digest

    def _digest(self, directory: Path, others: list[tuple[str, str]]) -> str:
        """Digest over the images that differ from those of a cache, empty if there are none; a message reports them."""
        if not others:
            return ""
        names = ", ".join(name for name, _ in others[:_EXAMPLES]) + (
            ", ..." if len(others) > _EXAMPLES else ""
        )
        count = "1 image is not the one" if len(others) == 1 else f"{len(others)} images are not those"
        self._reporter.message(f"{count} that {directory} was made from ({names}): the cache is no answer")
        return sha256_hex(repr(others).encode())

    def _refused(self, readers: Mapping[str, SplitReader]) -> Iterator[tuple[str, str]]:
        """Sampled images of an earlier version's cache that are now refused, for files that hold many images.

        Before, images of 32 bits were read as if they had 16. All images of a dataset have the same form, so a few images
        of each split are enough to find the datasets concerned.
        """
        from featcache.extraction.decoding.rgb import rgb_image  # Pillow

        for name, samples in self._source.splits.items():
            held = (
                np.flatnonzero(readers[name].valid()[: len(samples)]) if name in readers else np.zeros(0, int)
            )
            places = np.unique(np.linspace(0, held.size - 1, min(_LOOKED_AT, held.size)).astype(int))
            for row in held[places].tolist():
                try:
                    rgb_image(self._source, name, row)
                except UnavailableError:
                    raise
                except DatasetError:
                    yield samples[row].id, bytes(CONTENT_DIGEST_BYTES).hex()

    def _record(self, directory: Path, digest: str) -> None:
        if self._states is None:
            return
        with suppress(OSError, CacheError):  # a shared root may be read-only; then the next run looks again
            record_files(directory, {"fingerprints": self._states.fingerprints, REPLACED: digest})

    @staticmethod
    def _suspects(states: FileStates, known: list[dict[str, Any]], provenance: Mapping[str, Any]) -> Mask:
        """``[F]``: files to compare."""
        before = [
            states.differing(record["fingerprints"])
            for record in known
            if not record.get(REPLACED) and isinstance(record.get("fingerprints"), list)
        ]
        started = provenance.get("started_at")
        if before:
            suspects = min(before, key=lambda mask: int(mask.sum()))
        elif provenance.get("host") == platform.node() and isinstance(started, int | float):
            suspects = states.changed_since(started)
        else:
            suspects = states.uncompressed
        if provenance and CORRECTIONS not in provenance:
            # Integers of 32 bits were read as if they had 16 before that field was written.
            suspects = suspects | states.tiff
        return suspects

    def _others(
        self, suspects: Mask, cache: Cache, readers: Mapping[str, SplitReader]
    ) -> Iterator[tuple[str, str]]:
        """Id and content digest of every image that differs from the one in the cache."""
        states = self._states
        assert states is not None
        start = 0
        for name, samples in self._source.splits.items():
            mask = suspects[start : start + len(samples)] if states.per_row else None
            start += len(samples)
            if name not in readers or cache.inventory.splits[name].num_samples != len(samples):
                continue
            digests = readers[name].content_digests()
            if digests is None:
                continue
            held = readers[name].valid()
            rows = np.flatnonzero(held if mask is None else held & mask)
            turned = cache.manifest.orientations(name) if cache.spec.backbone.upright else None
            yield from self._compare(name, rows, digests, turned)

    def _compare(
        self,
        split: str,
        rows: npt.NDArray[np.int64],
        digests: npt.NDArray[np.uint8],
        turned: npt.NDArray[np.uint8] | None,
    ) -> Iterator[tuple[str, str]]:
        """Yield id and content of the images of some rows that differ.

        Args:
            split: the split.
            rows: the rows to compare.
            digests: content digests ``[N, 16]`` of the cache.
            turned: EXIF orientations ``[N]`` of the cache; None if it has images as stored.
        """
        from featcache.extraction.decoding.rgb import content_digest, rgb_image  # Pillow

        if not rows.size:
            return
        self._reporter.message(
            f"{rows.size} images of {split} may have changed since they were cached: comparing their pixels"
        )
        with self._reporter.progress("comparing", "images") as update:
            for done, row in enumerate(rows.tolist()):
                orientation = 1
                try:
                    image = rgb_image(self._source, split, row)
                    content = content_digest(image)
                    orientation = facts_of(image).get("turned", 1)
                except UnavailableError:
                    raise
                except DatasetError:  # it was an image when the cache was made
                    content = bytes(CONTENT_DIGEST_BYTES)
                if content != digests[row].tobytes():
                    yield self._source.splits[split][row].id, content.hex()
                elif turned is not None and turned[row] != orientation:
                    yield self._source.splits[split][row].id, f"{content.hex()} orientation {orientation}"
                update(done + 1, int(rows.size))
