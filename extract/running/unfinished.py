"""Extractions in progress: their finished parts, and the messages about them."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from featcache.store.errors import InterruptedRunError
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.writing.writer import CacheWriter


def plan_messages(writer: CacheWriter, wanted: Plan, batch_size: int | None) -> Iterator[str]:
    """Report the work of an open writer if it resumes or adds to a cache."""
    done, total = writer.committed_rows(), writer.plan.inventory.num_samples
    if not wanted.inventory.covers(writer.plan.inventory):
        yield f"first finishing what an earlier run began: {_arrays(writer.plan.inventory)}"
    elif (writer.directory / MANIFEST_FILE).exists():
        yield f"adding to {writer.directory}: {_arrays(writer.plan.inventory)}"
    if done:
        yield f"resuming {writer.directory}: {done} of {total} samples are committed"
    if (batch_size or writer.plan.batch_size) != writer.plan.batch_size:
        yield f"the batch size stays {writer.plan.batch_size}, as it was when this cache was begun"


def recorded_batch_size(path: Path) -> int | None:
    """Return the batch size of the cache that was completed or begun at `path`."""
    for document in (Manifest, Plan):
        with suppress(FileNotFoundError):
            return document.read(path).batch_size
    return None


def covers(path: Path, wanted: Inventory) -> bool:
    """Return whether the cache at `path` is complete and holds everything requested."""
    try:
        return Manifest.read(path).inventory.covers(wanted)
    except FileNotFoundError:
        return False


def _arrays(inventory: Inventory) -> str:
    return "; ".join(
        f"{split.name}: {', '.join(array.name for array in split.arrays.values() if array.layers)}"
        for split in inventory.splits.values()
    )


def interrupted(writer: CacheWriter) -> InterruptedRunError:
    """Return the error of a run that Ctrl-C stopped."""
    done, total = writer.committed_rows(), writer.plan.inventory.num_samples
    return InterruptedRunError(
        f"interrupted: {done} of {total} samples are committed in {writer.directory}; "
        "run the same command again to go on"
    )
