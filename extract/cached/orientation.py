"""Tell whether a cache of images as stored differs from one of images turned upright by their EXIF orientation."""

from collections.abc import Iterator
from typing import Any

from featcache.extraction.sources.base import Source
from featcache.store.reading.reader import Cache

MAX_LOOKED_AT = 2048
"""Largest number of image files whose headers are read; that takes half a second on a local disk."""
_OBSERVED = "images_of_last_run"


def unturned_note(cache: Cache, source: Source) -> str | None:
    """Return a note on images that a new cache would turn upright and this one does not; None if there are none.

    Args:
        cache: a complete cache.
        source: the dataset that it was made from.
    """
    if cache.spec.backbone.upright or not source.may_be_turned:
        return None
    total = sum(split.num_samples for split in cache.inventory.splits.values())
    records = list(_observed(cache))
    turned = max((_count(record, "turned") for record in records), default=0)
    known = any(_count(record, "images") >= total for record in records)
    if not turned and not known:
        found = source.count_turned(MAX_LOOKED_AT)
        if found is None:
            return (
                f"{cache.directory} has images as stored, and it is not known whether some carry an EXIF orientation; --exif "
                "makes a cache with images upright, --no-exif says that this one is meant"
            )
        turned = found
    if not turned:
        return None
    count = "1 image carries" if turned == 1 else f"{turned:,} images carry"
    least = "" if known or not records else "at least "
    return (
        f"{least}{count} an EXIF orientation, and {cache.directory} has images as stored; --exif makes a cache with images "
        "upright, --no-exif says that this one is meant"
    )


def _observed(cache: Cache) -> Iterator[dict[str, Any]]:
    """Yield what was counted while images were decoded, in the run that completed the cache and in additions."""
    additions = cache.provenance.get("additions")
    for document in (cache.provenance, *(additions if isinstance(additions, list) else ())):
        record = document.get(_OBSERVED) if isinstance(document, dict) else None
        if isinstance(record, dict):
            yield record


def _count(record: dict[str, Any], name: str) -> int:
    value = record.get(name)
    return value if isinstance(value, int) else 0
