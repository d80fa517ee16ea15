"""Batches on their way from the backbone to the disk: one thread waits for the features, another writes and commits them.

The two are apart so that a slow disk does not hold the device up: syncing the files of a block can take a second on NFS
or Lustre, in which a GPU computes dozens of batches. Features that wait for the disk lie in host memory, and their images
are released.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from featcache.extraction.decoding.batch import Rows
from featcache.extraction.forward_pass.forward import NotFiniteError, NumpyBatch
from featcache.extraction.forward_pass.view_passes import ViewPasses
from featcache.extraction.reuse.division import Division
from featcache.extraction.sources.base import Sample
from featcache.store.arrays import DTYPES
from featcache.store.inventory import SplitInventory
from featcache.store.planning import CONTENT_DIGEST
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.writer import CacheWriter

WAITING = 2
"""Batches whose passes have begun, besides those that run; their images are in the device's memory."""
MAX_WAITING_BYTES = 2**28
"""Largest size of the features that wait for the disk; about a second of ViT-L on an H100."""


@dataclass(frozen=True)
class Job:
    """Rows that are written together, and whose forward pass has begun."""

    block: BlockWriter
    rows: Rows
    division: Division
    """Where the features of the rows come from."""
    features: Callable[[], NumpyBatch]
    """Waits for the features of the pass and returns them; none where nothing is computed."""

    def values(self, split: SplitInventory) -> NumpyBatch:
        """Wait for the features and return the rows of every array of `split`.

        Raises:
            NotFiniteError: a value is not finite in the stored type.
        """
        division, failed = self.division, list(self.division.failed)
        values = self.features()
        if division.reused is not None:
            values = division.reused.merged(values)
        values |= sample_columns(division.samples, split, division.content, failed)
        for name, array in split.arrays.items():
            if array.layers and failed:
                values[name][failed] = np.frombuffer(DTYPES[array.dtype].fill_bytes, array.stored_dtype)[0]
        return {name: values[name] for name in split.arrays}

    @property
    def orientations(self) -> str:
        """EXIF orientation of each image, a digit from 1 (upright) to 8."""
        return "".join(map(str, self.division.orientations.tolist()))


class Writing:
    """Takes jobs and writes them in order. An error of a job is raised where a later one is put, or at the end.

    Args:
        writer: the open writer of the cache.
        extractors: the forward passes of every split.
        update: called in the thread that puts jobs, with the samples done so far.
    """

    def __init__(
        self, writer: CacheWriter, extractors: Mapping[str, ViewPasses], update: Callable[[int], None]
    ) -> None:
        self._writer = writer
        self._extractors = extractors
        self._update = update
        self._collecting = ThreadPoolExecutor(1, "featcache-collect")
        self._disk = ThreadPoolExecutor(1, "featcache-writer")
        self._limit = WAITING + max(extractor.at_once for extractor in extractors.values())
        self._begun: deque[tuple[Job, Future[Future[int]]]] = deque()
        self._written: deque[Future[int]] = deque()
        self._committed = writer.committed_rows()
        self._room = Condition()
        self._waiting_bytes = 0
        # Apart, because what was collected before a batch that failed is still written.
        self._collect_failed = self._write_failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):  # nobody wants to wait for a pass
            for extractor in self._extractors.values():
                extractor.stop()
        try:
            while self._begun:  # also after an error elsewhere: what was computed is not thrown away
                self._take()
            self._report_written(wait=True)
        except Exception:
            if error is None:
                raise
        finally:
            self._collecting.shutdown(wait=True, cancel_futures=True)
            self._disk.shutdown(wait=True)

    def put(self, job: Job) -> None:
        """Hand a batch over, waiting while too many are in flight.

        Raises:
            BackboneError: a value of this or an earlier batch is not finite in the stored type.
            OSError, CacheError: an earlier batch could not be written.
        """
        self._begun.append((job, self._collecting.submit(self._collect, job)))
        while len(self._begun) > self._limit:
            self._take()
        self._report_written(wait=False)

    def _collect(self, job: Job) -> Future[int]:
        """Wait for the features of a job and for room, and queue the write."""
        try:
            self._require(not self._collect_failed)
            values = job.values(self._writer.plan.inventory.splits[job.rows.split])
            num_bytes = sum(array.nbytes for array in values.values())
            with self._room:
                self._room.wait_for(lambda: self._write_failed or self._has_room(num_bytes))
                self._require(not self._write_failed)
                self._waiting_bytes += num_bytes
            return self._disk.submit(self._write, job, values, num_bytes)
        except BaseException:
            self._collect_failed = True
            raise

    def _write(self, job: Job, values: Mapping[str, npt.NDArray[np.generic]], num_bytes: int) -> int:
        """Append a batch, commit its block if it is full, and return the samples done so far."""
        block, reused = job.block, job.division.reused
        try:
            self._require(not self._write_failed)
            if reused is not None:
                block.reused.update(reused.origins)
            # The digest of an image is of its pixels as stored, so the way it was turned is kept beside.
            if self._writer.plan.spec.backbone.upright and CONTENT_DIGEST in values:
                block.append(values, job.orientations)
            else:
                block.append(values)
            uncommitted = block.rows
            if job.rows.stop == block.block.stop:
                self._writer.commit(block)
                self._committed, uncommitted = self._writer.committed_rows(), 0
            with self._room:
                self._waiting_bytes -= num_bytes
                self._room.notify()
            return self._committed + uncommitted
        except BaseException:
            with self._room:
                self._write_failed = True
                self._room.notify()
            raise

    def _has_room(self, num_bytes: int) -> bool:
        # A batch larger than the bound is written when no other waits.
        return not self._waiting_bytes or self._waiting_bytes + num_bytes <= MAX_WAITING_BYTES

    @staticmethod
    def _require(in_order: bool) -> None:
        # Rows are appended in order, so nothing may follow a batch that failed.
        if not in_order:
            raise RuntimeError("an earlier batch failed")

    def _take(self) -> None:
        """Wait for the features of the oldest job."""
        job, collected = self._begun.popleft()
        try:
            self._written.append(collected.result())
        except NotFiniteError:
            raise self._extractors[job.rows.split].explain(
                job.division.batch.by_view, job.division.computed_samples
            ) from None
        except RuntimeError:
            # Perhaps only the consequence of a write that failed, whose own error comes first.
            self._report_written(wait=True)
            raise

    def _report_written(self, wait: bool) -> None:
        """Report the batches that are written; with `wait`, all that were queued."""
        while self._written and (wait or self._written[0].done()):
            self._update(self._written.popleft().result())


def sample_columns(
    samples: Sequence[Sample],
    split: SplitInventory,
    content: npt.NDArray[np.uint8],
    failed: Sequence[int] = (),
) -> NumpyBatch:
    """Return the columns of some samples that `split` holds.

    Args:
        samples: the B samples.
        split: what is written; none of the columns, where arrays are added to a cache that has them.
        content: ``[B, 16]``, digests of the decoded images.
        failed: rows of those that could not be decoded.

    Returns:
        ``label [B, ...]`` if samples have labels, ``sample_id [B, bytes]``, ``valid [B]`` and ``content_digest [B, 16]``.
    """
    if "sample_id" not in split.arrays:
        return {}
    ids = np.zeros((len(samples), split.arrays["sample_id"].shape[1]), np.uint8)
    for row, sample in enumerate(samples):
        encoded = sample.id.encode()
        ids[row, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    valid = np.ones(len(samples), np.bool_)
    valid[list(failed)] = False
    columns: NumpyBatch = {"sample_id": ids, "valid": valid, CONTENT_DIGEST: content}
    if "label" in split.arrays:
        stored = split.arrays["label"].stored_dtype
        columns["label"] = np.array([sample.label for sample in samples], stored)
    return columns
