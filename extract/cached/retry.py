"""Retry rows without features: the next run tries again to decode their images."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.extraction.sources.base import Source
from featcache.store import journal
from featcache.store.checking.reopen import drop_committed, reopen
from featcache.store.errors import CacheBusyError, CacheError, DatasetError
from featcache.store.inventory import Block, Inventory
from featcache.store.journal import FEATURES, Plan
from featcache.store.reading.reader import Cache
from featcache.store.reading.split import SplitReader
from featcache.store.writing.writer import CacheWriter

VALID = "valid"


@dataclass(frozen=True)
class Retry:
    """The failed rows of a cache, and the result of decoding their images again."""

    failed: int
    """Rows without features."""
    restored: int
    """Rows among them whose images decode now."""
    blocks: Sequence[Block]
    """Blocks that hold these rows."""

    def __str__(self) -> str:
        rows = "1 sample has" if self.failed == 1 else f"{self.failed} samples have"
        tried = "still does not decode" if self.failed == 1 else "still do not decode"
        if not self.restored:
            return f"{rows} no features: tried again, {tried}"
        blocks = "1 block is" if len(self.blocks) == 1 else f"{len(self.blocks)} blocks are"
        return (
            f"{rows} no features: tried again, {self.restored} of them decode now; {blocks} extracted again"
        )


def try_again(cache: Cache, source: Source) -> Retry | None:
    """Try the failed rows of a complete cache once more; None if there are none. Only images are read, no backbone runs."""
    return _try(cache.directory, cache.inventory, cache.inventory.blocks(), source)


def reopen_restored(directory: Path, retry: Retry | None) -> None:
    """Remove the blocks with restored rows from a complete cache, so that the run extracts them again.

    Raises:
        CacheError, CacheBusyError: the cache is a partial copy, or another process is at work on it.
    """
    if retry is not None and retry.blocks:
        reopen(directory, retry.blocks)


def drop_restored(directory: Path, source: Source) -> Retry | None:
    """Remove the blocks with restored rows from an unfinished cache; None if there are none."""
    try:
        plan = Plan.read(directory)
    except (FileNotFoundError, CacheError):
        return None
    blocks = [record.block for record in journal.committed(directory, plan.inventory)]
    retry = _try(directory, plan.inventory, blocks, source)
    if retry is None or not retry.blocks:
        return None
    with suppress(CacheBusyError):  # another process is writing the cache; the next run tries again
        drop_committed(directory, retry.blocks)
        return retry
    return None


def refuse_empty_splits(writer: CacheWriter) -> None:
    """Refuse to complete a split in which no image decoded; drop its blocks, so that the next run extracts them again.

    Raises:
        DatasetError: no image of a split decoded.
    """
    inventory = writer.plan.inventory
    for name, split in inventory.splits.items():
        if VALID not in split.arrays or not split.num_samples:
            continue
        blocks = split.blocks()
        if not SplitReader(writer.directory / FEATURES, split, blocks).valid().any():
            journal.drop(writer.directory, blocks)
            raise DatasetError(
                f"none of the {split.num_samples} images of split {name} decodes, so there is nothing to cache; see the "
                "messages above: are these images, and is the folder the right one?"
            )


def _try(directory: Path, inventory: Inventory, blocks: Sequence[Block], source: Source) -> Retry | None:
    from featcache.extraction.decoding.rgb import rgb_image  # Pillow

    failed, restored, again = 0, 0, []
    for name, split in inventory.splits.items():
        own = [block for block in blocks if block.split == name]
        if VALID not in split.arrays or name not in source.splits:
            continue
        if len(source.splits[name]) != split.num_samples:
            continue
        valid = SplitReader(directory / FEATURES, split, own).valid()
        for block in own:
            rows = block.start + np.flatnonzero(~valid[block.start : block.stop])
            decoded = 0
            for row in rows.tolist():
                with suppress(DatasetError, OSError, MemoryError):
                    rgb_image(source, name, row)
                    decoded += 1
            failed, restored = failed + len(rows), restored + decoded
            if decoded:
                again.append(block)
    return Retry(failed, restored, again) if failed else None
