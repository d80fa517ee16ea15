"""The extraction itself: images through the backbone once, pooled tokens of all layers into committed blocks.

Worker processes decode, the backbone runs (on a GPU as this thread tells it, on a CPU in threads of its own), and another
thread hashes, writes and commits: nothing but the forward pass may hold the run up. What is in flight is bounded, so
memory does not grow with the dataset.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.decoding.images import Transform, image_batches
from featcache.extraction.decoding.observed import Observed
from featcache.extraction.decoding.prefetch import to_device
from featcache.extraction.forward_pass.forward import Extractor, NotFiniteError, NumpyBatch
from featcache.extraction.sources.base import Sample, Source
from featcache.store.arrays import DTYPES
from featcache.store.errors import DatasetError, UnavailableError
from featcache.store.inventory import SplitInventory
from featcache.store.planning import CONTENT_DIGEST
from featcache.store.progress import Update
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.writer import CacheWriter

WAITING = 2
"""Batches between decoding and the disk, besides those whose forward passes run."""


@dataclass(frozen=True)
class ImageInput:
    """Where images come from, and how."""

    source: Source
    transform: Transform
    """The model's own preprocessing."""
    input_size: int
    """Side of a preprocessed image, pixels."""
    workers: int
    """Processes that decode images; 0 decodes in this one."""
    device: torch.device
    """Where the backbone runs."""
    skip_failures: bool = False
    """Go on without an image that does not decode, rather than stop."""
    say: Callable[[str], None] = lambda text: None
    """Is told of every image that is skipped."""
    known_content: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """By split, the content digests ``[N, 16]`` of a cache that is added to: its images must be the same ones."""
    observed: Observed = field(default_factory=Observed)
    """Counts the facts found while decoding the images of this run."""

    def batches(self, rows: Iterable[Rows]) -> Iterator[ImageBatch]:
        """The images of `rows` on the device, in order."""
        gpu = self.device if self.device.type == "cuda" else None
        batches = image_batches(self.source, self.transform, rows, self.workers, self.input_size, gpu)
        return to_device(batches, self.device, self.transform)

    def refuse_or_skip(self, batch: ImageBatch) -> None:
        """Stop at an image that failed, or say that it is left out.

        Raises:
            UnavailableError: a file is gone or cannot be read; such an image is never skipped.
            DatasetError: one failed, and failures are not skipped.
        """
        if batch.unavailable:
            raise UnavailableError(batch.unavailable[0])
        for _, message in batch.failures:
            if not self.skip_failures:
                raise DatasetError(
                    f"{message}; leave it out with --on-error skip, which goes on after what is committed, or mend or "
                    "remove it, which makes another dataset and starts anew"
                )
            self.say(f"skipped: {message}")

    def check_content(self, rows: Rows, samples: Sequence[Sample], content: npt.NDArray[np.uint8]) -> None:
        """Refuse images that are not those that the cache was made from.

        Raises:
            DatasetError: one is not.
        """
        known = self.known_content.get(rows.split)
        if known is None:
            return
        before = known[rows.start : rows.stop]
        # A row that failed when the cache was made has zeros.
        changed = np.flatnonzero((before != content).any(1) & before.any(1))
        if changed.size:
            raise DatasetError(
                f"image {samples[changed[0]].id!r} is not the one that the cache was made from, so nothing can be added; "
                "remove the cache and extract it again"
            )


def run_blocks(
    writer: CacheWriter, images: ImageInput, extractors: Mapping[str, Extractor], update: Update
) -> int:
    """Extract and commit blocks until none is left that no other process is writing.

    Args:
        writer: the open writer of the cache.
        images: the images.
        extractors: the forward passes of every split.
        update: called with the samples done and in all, at the start and after every batch.

    Returns:
        The number of samples that this run extracted.

    Raises:
        DatasetError: an image does not decode; blocks that were committed stay.
        BackboneError: a value is not finite in the stored type.
    """
    claimed = _ClaimedBatches(writer)
    total, extracted = writer.plan.inventory.num_samples, 0
    update(writer.committed_rows(), total)
    with _Writing(writer, extractors, lambda done: update(done, total)) as writing:
        batches = images.batches(claimed)
        try:
            for batch in batches:
                images.refuse_or_skip(batch)
                images.observed.add(batch.facts.numpy())
                block, rows = claimed.loaded()
                samples = images.source.splits[rows.split][rows.start : rows.stop]
                images.check_content(rows, samples, batch.content.numpy())
                writing.put(_Job(block, rows, samples, batch, extractors[rows.split].start(batch.images)))
                extracted += len(samples)
        finally:
            # Ends the worker processes now: the traceback of an error would keep them.
            del batches
    return extracted


@dataclass(frozen=True)
class _Job:
    """One batch on its way to disk."""

    block: BlockWriter
    rows: Rows
    samples: Sequence[Sample]
    batch: ImageBatch
    features: Callable[[], NumpyBatch]

    def run(self, writer: CacheWriter) -> int:
        """Append the batch, and commit the block when it is full; the rows of an unfinished block so far, or 0."""
        split = writer.plan.inventory.splits[self.rows.split]
        failed = [row for row, _ in self.batch.failures]
        values = self.features() | sample_columns(self.samples, split, self.batch.content.numpy(), failed)
        for name, array in split.arrays.items():
            if array.layers and failed:
                values[name][failed] = np.frombuffer(DTYPES[array.dtype].fill_bytes, array.stored_dtype)[0]
        self.block.append({name: values[name] for name in split.arrays})
        if self.rows.stop == self.block.block.stop:
            writer.commit(self.block)
            return 0
        return self.block.rows


class _Writing:
    """Runs jobs one after another in a thread; an error of one is raised where the next is put.

    `update` is told the samples done after every job.
    """

    def __init__(
        self, writer: CacheWriter, extractors: Mapping[str, Extractor], update: Callable[[int], None]
    ) -> None:
        self._writer = writer
        self._extractors = extractors
        self._update = update
        self._pool = ThreadPoolExecutor(1, "featcache-writer")
        self._limit = WAITING + max(extractor.at_once for extractor in extractors.values())
        self._jobs: deque[tuple[_Job, Future[int]]] = deque()
        self._committed = writer.committed_rows()
        self._failed = False

    def __enter__(self) -> "_Writing":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):  # nobody wants to wait for a pass
            for extractor in self._extractors.values():
                extractor.stop()
        try:
            while self._jobs:  # also after an error elsewhere: what was computed is not thrown away
                self._take()
        except Exception:
            if error is None:
                raise
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def put(self, job: _Job) -> None:
        """Hand a batch over, waiting while too many are in flight."""
        self._jobs.append((job, self._pool.submit(self._run, job)))
        while len(self._jobs) > self._limit:
            self._take()

    def _run(self, job: _Job) -> int:
        # Rows are appended in order, so nothing may follow a batch that failed.
        if self._failed:
            raise RuntimeError("an earlier batch failed")
        try:
            pending = job.run(self._writer)
            if not pending:
                self._committed = self._writer.committed_rows()
            return self._committed + pending
        except BaseException:
            self._failed = True
            raise

    def _take(self) -> None:
        job, future = self._jobs.popleft()
        try:
            done = future.result()
        except NotFiniteError:
            raise self._extractors[job.rows.split].explain(job.batch.images, job.samples) from None
        self._update(done)


class _ClaimedBatches:
    """The batches of one block after another, each block claimed when the loader first looks ahead to it."""

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer
        self._ahead: deque[tuple[BlockWriter, Rows]] = deque()

    def __iter__(self) -> Iterator[Rows]:
        while (block := self._writer.claim()) is not None:
            for start in range(
                block.block.start + block.rows, block.block.stop, self._writer.plan.batch_size
            ):
                stop = min(start + self._writer.plan.batch_size, block.block.stop)
                rows = Rows(block.block.split, start, stop)
                self._ahead.append((block, rows))
                yield rows

    def loaded(self) -> tuple[BlockWriter, Rows]:
        """The block and the rows of the batch that the loader has just given out; it keeps the order."""
        return self._ahead.popleft()


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
        ``label [B, ...]``, ``sample_id [B, bytes]``, ``valid [B]`` and ``content_digest [B, 16]``.
    """
    if "sample_id" not in split.arrays:
        return {}
    ids = np.zeros((len(samples), split.arrays["sample_id"].shape[1]), np.uint8)
    for row, sample in enumerate(samples):
        encoded = sample.id.encode()
        ids[row, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    valid = np.ones(len(samples), np.bool_)
    valid[list(failed)] = False
    labels = np.array([sample.label for sample in samples], split.arrays["label"].stored_dtype)
    return {"label": labels, "sample_id": ids, "valid": valid, CONTENT_DIGEST: content}
