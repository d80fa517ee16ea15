"""How far decoding looks ahead of the backbone: by rows, whatever the batch size and the number of workers.

A block has to be claimed before its images are decoded. Workers that each decode whole batches ahead would claim most of
a small dataset at once: 16 of them, two batches of 128 each, are 4,096 rows that no other process can take. So they
decode parts of a batch, which are joined again, and blocks are claimed as the parts reach them.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.decoding.worker_pool import AHEAD
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.writer import CacheWriter

LOOK_AHEAD_ROWS = 1024
"""Rows that are decoded ahead; at 2,000 images/s, half a second of work for the device."""
MIN_PART_ROWS = 16
"""Smallest part; handing over fewer rows at a time costs more than it evens out."""


def part_rows(batch_size: int, workers: int) -> int:
    """Return how many rows one worker decodes at a time, so that all of them stay within `LOOK_AHEAD_ROWS`."""
    if not workers:
        return batch_size
    return min(batch_size, max(MIN_PART_ROWS, LOOK_AHEAD_ROWS // (AHEAD * workers)))


class ClaimedBatches:
    """The parts of the batches of one block after another; each block is claimed when decoding reaches it.

    Args:
        writer: the open writer of the cache.
        workers: processes that decode.
        windows: divides the rows of a split from one to another into batches of the given size; evenly if not given.
    """

    def __init__(
        self,
        writer: CacheWriter,
        workers: int,
        windows: Callable[[str, int, int, int], Sequence[Rows]] | None = None,
    ) -> None:
        self._writer = writer
        self._windows = windows or _even_batches
        self._part_rows = part_rows(writer.plan.batch_size, workers)
        self._ahead: deque[tuple[BlockWriter, Rows, int]] = deque()

    def __iter__(self) -> Iterator[Rows]:
        while (block := self._writer.claim()) is not None:
            where, size = block.block, self._writer.plan.batch_size
            for batch in self._windows(where.split, where.start + block.rows, where.stop, size):
                parts = list(_parts(batch, self._part_rows))
                self._ahead.append((block, batch, len(parts)))
                yield from parts

    def joined(self, parts: Iterator[ImageBatch]) -> Iterator[tuple[BlockWriter, Rows, ImageBatch]]:
        """Yield whole batches of the decoded `parts`, each with its block and rows; the parts come in the order of iteration."""
        for first in parts:
            block, rows, count = self._ahead.popleft()
            yield block, rows, joined([first, *(next(parts) for _ in range(count - 1))])


def _even_batches(split: str, start: int, stop: int, size: int) -> list[Rows]:
    return [Rows(split, first, min(first + size, stop)) for first in range(start, stop, size)]


def _parts(rows: Rows, size: int) -> Iterator[Rows]:
    if rows.decoded is None:
        yield from _even_batches(rows.split, rows.start, rows.stop, size)
        return
    for first in range(0, len(rows.decoded), size):
        part = rows.decoded[first : first + size]
        yield Rows(rows.split, part[0], part[-1] + 1, part)


def joined(parts: Sequence[ImageBatch]) -> ImageBatch:
    """Return one batch of the rows of all `parts`, in order."""
    if len(parts) == 1:
        return parts[0]
    failures, start = [], 0
    for part in parts:
        failures += [(start + row, message) for row, message in part.failures]
        start += len(part.images)
    return ImageBatch(
        _joined_images([part.images for part in parts]),
        torch.cat([part.content for part in parts]),
        failures,
        torch.cat([part.facts for part in parts]),
        [message for part in parts for message in part.unavailable],
        {name: _joined_images([part.views[name] for part in parts]) for name in parts[0].views},
    )


def _joined_images(images: Sequence[Tensor]) -> Tensor:
    # Parts for which the device had no room stayed on the host. Then all go there, and the extractor divides the batch.
    if len({part.device for part in images}) == 1:
        with suppress(torch.OutOfMemoryError):
            return torch.cat(list(images))
    return torch.cat([part.cpu() for part in images])
