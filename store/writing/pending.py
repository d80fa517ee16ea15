"""Pending work of an extraction, and the disk space that it needs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from featcache.store import journal
from featcache.store.errors import FeatcacheError
from featcache.store.files import PARTIAL_SUFFIX
from featcache.store.inventory import Block, Inventory
from featcache.store.journal import FEATURES, Plan
from featcache.store.manifest import Manifest


class NotEnoughSpaceError(FeatcacheError, OSError):
    """The disk has no room for what is to be written; nothing was written."""


@dataclass(frozen=True)
class PendingWork:
    """Pending work of an extraction."""

    samples: int
    """Rows that the backbone still has to see."""
    committed: int
    """Rows of an unfinished run that are there already."""
    num_bytes: int
    """Bytes still to be written, padding included."""


def pending_work(directory: Path, requested: Inventory) -> PendingWork:
    """Return what is left to be done until the cache at `directory` holds all of `requested`.

    An unfinished run there counts in full, since it is finished first.

    Raises:
        CacheError: what is there is damaged.
    """
    held = _held(directory)
    unfinished = _unfinished(directory, held)
    committed: set[Block] = set()
    parts = []
    if unfinished is not None:
        committed = {record.block for record in journal.committed(directory, unfinished)}
        parts.append((unfinished, [block for block in unfinished.blocks() if block not in committed]))
        held = unfinished if held is None else held.plus(unfinished)
    added = requested if held is None else requested.minus(held)
    parts.append((added, added.blocks()))
    return PendingWork(
        samples=sum(block.rows for _, blocks in parts for block in blocks),
        committed=sum(block.rows for block in committed),
        num_bytes=sum(_num_bytes(part, block) for part, blocks in parts for block in blocks),
    )


def free_space(directory: Path) -> tuple[int, Path]:
    """Return the bytes that are free where `directory` is or would be, and the nearest folder that exists."""
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free, existing


def require_space(directory: Path, requested: Inventory) -> None:
    """Refuse to begin what cannot be finished for want of disk space.

    Raises:
        NotEnoughSpaceError: there is too little.
        CacheError: as for `pending_work`.
    """
    needed = pending_work(directory, requested).num_bytes
    free, place = free_space(directory)
    # What other processes are writing just now takes its space already.
    needed -= sum(path.stat().st_size for path in (directory / FEATURES).rglob(f"*{PARTIAL_SUFFIX}"))
    if needed > free:
        raise NotEnoughSpaceError(
            f"not enough disk space: {needed / 1e6:,.1f} MB are to be written, {free / 1e6:,.1f} MB are free at {place}; make "
            "room, cache less, or give another --root. Nothing was written"
        )


def _held(directory: Path) -> Inventory | None:
    try:
        return Manifest.read(directory).inventory
    except FileNotFoundError:
        return None


def _unfinished(directory: Path, held: Inventory | None) -> Inventory | None:
    try:
        planned = Plan.read(directory).inventory
    except FileNotFoundError:
        return None
    return None if held is not None and held.covers(planned) else planned


def _num_bytes(inventory: Inventory, block: Block) -> int:
    arrays = inventory.splits[block.split].arrays.values()
    return sum(array.chunk_bytes * array.files_per_block for array in arrays)
