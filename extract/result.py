"""What an extraction gave."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from featcache.store.files import JsonObject
from featcache.store.reading.content import SharedImages, shared_images
from featcache.store.reading.reader import open_cache


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction gave."""

    path: Path
    key: str
    cached: bool
    """The cache was complete already; nothing was computed."""
    samples: int
    """Samples that this run wrote."""
    seconds: float
    """Time that the backbone and its data took in this run, without loading."""
    notes: tuple[str, ...] = ()
    """Notes on images that were not used exactly as stored, such as images with transparency."""
    reused: int = 0
    """Samples among them that were taken over from other caches, without a pass through the backbone."""

    @cached_property
    def skipped(self) -> int:
        """Samples of the cache without features, because their images do not decode."""
        cache = open_cache(self.path)
        return sum(int((~cache[name].valid()).sum()) for name in cache.inventory.splits)

    @cached_property
    def shared(self) -> list[SharedImages]:
        """Images that two splits of the cache share."""
        return list(shared_images(open_cache(self.path)))

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values."""
        rate = None if self.cached or not self.seconds else round(self.samples / self.seconds, 2)
        return {
            "path": str(self.path),
            "key": self.key,
            "cached": self.cached,
            "samples": self.samples,
            "reused": self.reused,
            "seconds": round(self.seconds, 3),
            "images_per_second": rate,
            "skipped": self.skipped,
            "notes": list(self.notes),
            "shared_images": [shared.to_dict() for shared in self.shared],
        }
