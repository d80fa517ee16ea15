"""The rows of a run, divided into those that are taken over from other caches and those that the backbone computes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.reuse.content_records import (
    IMAGE_KEY_BYTES,
    ContentRecords,
    Digests,
    image_keys,
)
from featcache.extraction.reuse.reusable_rows import Numbers, ReusableRows
from featcache.extraction.sources.base import Sample
from featcache.extraction.sources.pixels import FACTS
from featcache.store.arrays import ArrayInfo
from featcache.store.errors import DatasetError
from featcache.store.reading.chunks import Array

_MAX_BYTES = 2**26
"""Most bytes of features of the rows that are written together."""


@dataclass(frozen=True)
class ReusedRows:
    """Rows among B consecutive ones that are taken over."""

    rows: ReusableRows
    places: npt.NDArray[np.int64]
    """``[R]``, their places among the B rows, ascending."""
    numbers: Numbers
    """``[R]``, their numbers in `rows`."""
    computed: npt.NDArray[np.int64]
    """``[B - R]``, the places of the rows that the backbone computes, ascending."""

    @property
    def origins(self) -> Counter[str]:
        """Number of rows by the cache that they come from."""
        return self.rows.origins(self.numbers)

    def merged(self, computed: Mapping[str, Array]) -> dict[str, Array]:
        """Return all B rows of every array: those of `computed` ``[B - R, L, K, D]``, and those of the caches."""
        reused = self.rows.read(self.numbers)
        count = len(self.places) + len(self.computed)
        merged = {}
        for name, values in reused.items():
            merged[name] = np.empty((count, *values.shape[1:]), values.dtype)
            merged[name][self.places] = values
            if len(self.computed):
                merged[name][self.computed] = computed[name]
        return merged


@dataclass(frozen=True)
class Division:
    """B consecutive rows, and where the features of each come from."""

    samples: Sequence[Sample]
    batch: ImageBatch
    """The images that the backbone computes, in order."""
    content: Digests
    """``[B, 16]``, content digests; zeros where an image did not decode."""
    orientations: Digests
    """``[B]``, EXIF orientation by which each image is turned, 1 for upright ones."""
    failed: Sequence[int]
    """Places of the images that did not decode."""
    reused: ReusedRows | None = None
    """The rows that are taken over; None if there are none."""

    @property
    def computed_samples(self) -> Sequence[Sample]:
        """The samples of `batch`."""
        return (
            self.samples if self.reused is None else [self.samples[int(row)] for row in self.reused.computed]
        )

    @classmethod
    def whole(cls, samples: Sequence[Sample], batch: ImageBatch) -> "Division":
        """Return the division of a batch of which all rows are computed."""
        failed = [row for row, _ in batch.failures]
        return cls(samples, batch, batch.content.numpy(), _orientations(batch), failed)


def _orientations(batch: ImageBatch) -> Digests:
    turned: Digests = batch.facts[:, FACTS.index("turned")].clamp(min=1).numpy().astype(np.uint8)
    return turned


@dataclass
class Reuse:
    """Rows of other caches for one run, and the records of file contents that later runs will go by.

    Two ways tell that a row may be taken over. The file of its image is in the very state (size, times, inode) in which a run
    decoded it before; then it is not decoded again. Or the image was decoded, and its digest is that of a row.
    """

    rows: ReusableRows | None
    fingerprints: Mapping[str, Digests]
    """By split ``[N, 16]``, as from `Source.row_fingerprints`, taken before the run decodes its first image."""
    recorded: Mapping[str, Digests]
    """By split ``[N, 17]``, the keys of the images on record for these fingerprints; zeros where there is none."""
    say: Callable[[str], object]
    row_bytes: int
    """Bytes of the features of one row."""
    upright: bool
    """Whether images are turned by their EXIF orientation."""
    count: int = 0
    """Rows taken over so far."""
    known_rows: int = 0
    """Rows in files whose content is on record and held by a cache."""
    _seen: dict[str, Digests] = field(default_factory=dict)
    _said: bool = False

    @classmethod
    def of(
        cls,
        rows: ReusableRows | None,
        fingerprints: Mapping[str, Digests],
        records: Sequence[ContentRecords],
        arrays: Sequence[ArrayInfo],
        say: Callable[[str], object],
        *,
        upright: bool,
    ) -> "Reuse":
        """Prepare a run.

        Args:
            rows: the rows of other caches; None to compute all.
            fingerprints: states of the dataset's files now, by split.
            records: the records that were kept with the caches.
            arrays: the token arrays that are written.
            say: receives a line when the first row is taken over.
            upright: whether images are turned by their EXIF orientation.
        """
        recorded = {}
        for split, states in fingerprints.items():
            recorded[split] = np.zeros((len(states), IMAGE_KEY_BYTES), np.uint8)
            for known in records if rows is not None else ():
                lacking = ~recorded[split].any(1)
                recorded[split][lacking] = known.images_of(states[lacking])
        row_bytes = sum(array.chunk_bytes // array.block_rows * len(array.layers) for array in arrays)
        return cls(rows, fingerprints, recorded, say, max(1, row_bytes), upright)

    def announce(self) -> None:
        """Count the rows in files whose content is on record and held by a cache, and report them if there are any."""
        if self.rows is None or not self.recorded:
            return
        numbers = self.rows.locate(np.concatenate(list(self.recorded.values())))
        found = numbers[numbers >= 0]
        self.known_rows = len(found)
        if len(found):
            self._said = True
            self.say(
                f"reusing rows of {', '.join(self.rows.directories(found))}: {len(found):,} of {len(numbers):,} images lie in files "
                "that are unchanged since and are not decoded again"
            )

    def windows(self, split: str, start: int, stop: int, batch_size: int) -> list[Rows]:
        """Divide rows into parts that are written together, with at most `batch_size` rows to decode in each.

        One row of each part is decoded even if all are known, and must be the image on record: a file system whose times or
        inodes do not tell files apart is found out.
        """
        known = np.zeros(stop - start, np.bool_)
        if self.rows is not None and split in self.recorded:
            known = self.rows.find(self.recorded[split][start:stop]) >= 0
        if not known.any():
            return [
                Rows(split, first, min(first + batch_size, stop)) for first in range(start, stop, batch_size)
            ]
        most, windows, first = max(batch_size, _MAX_BYTES // self.row_bytes), [], 0
        while first < len(known):
            unknown = np.flatnonzero(~known[first : first + most])
            count = min(most, len(known) - first)
            if len(unknown) > batch_size:
                count = int(unknown[batch_size])
            decoded = tuple((start + first + unknown[unknown < count]).tolist()) or (start + first,)
            windows.append(Rows(split, start + first, start + first + count, decoded))
            first += count
        return windows

    def divide(self, rows: Rows, samples: Sequence[Sample], batch: ImageBatch) -> Division:
        """Return where the features of `rows` come from, once the rows to decode are decoded.

        Args:
            rows: as from `windows`.
            samples: the B samples of the rows.
            batch: the decoded images.

        Raises:
            DatasetError: an image is not the one on record, although its file seems unchanged.
        """
        decoded = np.array(rows.numbers, np.int64) - rows.start
        keys = np.zeros((len(samples), IMAGE_KEY_BYTES), np.uint8)
        fresh = image_keys(batch.content.numpy(), _orientations(batch) if self.upright else None)
        if rows.decoded is not None:
            keys[:] = self.recorded[rows.split][rows.start : rows.stop]
            self._refuse_others(keys[decoded], fresh, [samples[int(place)] for place in decoded])
        keys[decoded] = fresh
        self._record(rows, keys)
        failed = decoded[[place for place, _ in batch.failures]].tolist()
        seen = (keys[:, :-1], np.maximum(keys[:, -1], 1), failed)
        if self.rows is None:
            return Division(samples, batch, *seen)
        numbers = self.rows.find(keys)
        places = np.flatnonzero(numbers >= 0)
        if not len(places):
            return Division(samples, batch, *seen)
        computed = np.flatnonzero(numbers < 0)
        self._report(numbers[places])
        kept = np.searchsorted(decoded, computed).tolist()
        reused = ReusedRows(self.rows, places, numbers[places], computed)
        return Division(samples, batch.select(kept), *seen, reused)

    def records(self) -> ContentRecords:
        """Return the records of all files whose content this run has seen."""
        records = ContentRecords.none()
        for split, images in self._seen.items():
            states = self.fingerprints[split]
            known = images.any(1) & states.any(1)
            records = ContentRecords(
                np.concatenate([records.fingerprints, states[known]]),
                np.concatenate([records.images, images[known]]),
            )
        return records

    def _record(self, rows: Rows, keys: Digests) -> None:
        if rows.split in self.fingerprints:
            if rows.split not in self._seen:
                self._seen[rows.split] = np.zeros_like(self.recorded[rows.split])
            self._seen[rows.split][rows.start : rows.stop] = keys

    @staticmethod
    def _refuse_others(recorded: Digests, fresh: Digests, samples: Sequence[Sample]) -> None:
        """Refuse images that decoded and are not those on record."""
        other = np.flatnonzero(recorded.any(1) & fresh.any(1) & (recorded != fresh).any(1))
        if len(other):
            raise DatasetError(
                f"image {samples[int(other[0])].id!r} is not the one on record, although size, times and inode of its file are the "
                "same; run the same command with --reuse none"
            )

    def _report(self, numbers: Numbers) -> None:
        self.count += len(numbers)
        if not self._said and self.rows is not None:
            self._said = True
            self.say(
                f"reusing rows of {', '.join(self.rows.directories(numbers))}, which holds some of these images"
            )
