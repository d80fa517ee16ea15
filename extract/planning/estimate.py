"""What an extraction would do: the answer of ``featcache extract --dry-run``."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from featcache.store.catalogue import Entry
from featcache.store.files import JsonObject
from featcache.store.inventory import Inventory
from featcache.store.writing.pending import PendingWork, free_space, pending_work

NEW, UNFINISHED, LACKING, COMPLETE = "new", "unfinished", "lacking", "complete"


@dataclass(frozen=True)
class Speed:
    """How fast it would go, from a few batches."""

    images_per_second: float
    device: str
    precision: str
    batch_size: int


@dataclass(frozen=True)
class Estimate:
    """What an extraction would do; nothing was written."""

    path: Path
    """Folder of the cache, there or not."""
    key: str
    inventory: Inventory
    """All that is asked for."""
    held: Inventory | None
    """What the complete cache at `path` holds."""
    remaining: PendingWork
    speed: Speed | None
    """None where nothing is left to be extracted."""
    reused: int = 0
    """Rows that are taken over from other caches without decoding an image."""

    @classmethod
    def of_complete(cls, entry: Entry) -> Self:
        """Return the estimate of a request that a complete cache answers."""
        inventory = entry.cache.inventory
        return cls(entry.path, entry.key, inventory, inventory, pending_work(entry.path, inventory), None)

    @property
    def state(self) -> str:
        """``new``, ``unfinished``, ``lacking`` (complete, but some of what is asked for is not there) or ``complete``."""
        if self.remaining.samples == 0:
            return COMPLETE
        if self.held is not None:
            return LACKING
        return UNFINISHED if self.path.is_dir() else NEW

    @property
    def lacking(self) -> Inventory:
        """What the cache does not hold of what is asked for; of a cache that is not complete, everything."""
        return self.inventory if self.held is None else self.inventory.minus(self.held)

    @cached_property
    def space(self) -> tuple[int, Path]:
        """Free bytes, and where."""
        return free_space(self.path)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is left to be written."""
        return self.remaining.num_bytes <= self.space[0]

    @property
    def seconds(self) -> float | None:
        """Time that the extraction would take, about, without loading."""
        computed = max(0, self.remaining.samples - self.reused)
        return None if self.speed is None else computed / self.speed.images_per_second

    def to_dict(self) -> JsonObject:
        """Return the estimate as plain JSON values."""
        speed = self.speed
        return {
            "path": str(self.path),
            "key": self.key,
            "state": self.state,
            "inventory": self.inventory.to_dict(),
            "lacking": {
                split.name: {a.name: list(a.layers) for a in split.arrays.values() if a.layers}
                for split in self.lacking.splits.values()
            }
            if self.state != COMPLETE
            else {},
            "samples": self.inventory.num_samples,
            "committed_samples": self.remaining.committed,
            "samples_to_extract": self.remaining.samples,
            "samples_to_reuse": self.reused,
            "bytes": self.inventory.num_bytes,
            "bytes_to_write": self.remaining.num_bytes,
            "free_bytes": self.space[0],
            "free_at": str(self.space[1]),
            "fits": self.fits,
            "images_per_second": None if speed is None else round(speed.images_per_second, 2),
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "device": None if speed is None else speed.device,
            "precision": None if speed is None else speed.precision,
            "batch_size": None if speed is None else speed.batch_size,
        }
