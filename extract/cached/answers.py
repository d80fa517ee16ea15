"""Check that a cache whose key matches a request is its answer: right values, the same images, no rows to repair."""

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from featcache.extraction.cached.freshness import REPLACED, Freshness
from featcache.extraction.cached.retry import Retry, try_again
from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.sources.base import Source
from featcache.store.catalogue import Entry
from featcache.store.catalogue.entries import COMPLETE_RANK
from featcache.store.corrections import warnings_of
from featcache.store.errors import CacheError
from featcache.store.progress import Reporter
from featcache.store.reading.reader import open_cache


class OutdatedCacheError(CacheError):
    """An intact cache holds outdated values; the message says what to do."""


class Verdict(Enum):
    """How a cache relates to a request that names it."""

    ANSWER = "the answer"
    REPLACED = "made from other images than lie there now"
    RESTORED = "rows that failed can be extracted now"


class Answers:
    """Looks at the caches of one run.

    Args:
        source: the dataset.
        search: roots; only caches under the first one are changed.
        reporter: receives messages.
    """

    def __init__(self, source: Source, search: Sequence[Path], reporter: Reporter) -> None:
        self._source = source
        self._search = search
        self._reporter = reporter
        self._freshness = Freshness(source, reporter)
        self._replaced = ""
        self._same: set[Path] = set()
        self._tried = False
        self.retry: Retry | None = None
        """Failed rows of the cache; set after `verdict` has reported that some are restored."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity of the dataset, including the images that were replaced since the previous cache was made."""
        extra = {REPLACED: self._replaced} if self._replaced else {}
        return {**self._source.identity, **extra}

    def verdict(self, entry: Entry) -> Verdict:
        """Judge a complete cache that holds everything requested.

        Raises:
            OutdatedCacheError: a later correction concerns the values of the cache.
            CacheError: the cache is damaged.
            UnavailableError: an image that has to be compared cannot be read.
        """
        cache = entry.cache
        wrong = warnings_of(cache.spec, cache.inventory.targets, cache.provenance, as_answer=True)
        if wrong:
            raise OutdatedCacheError(
                f"{entry.path} was {wrong[0]}: remove it first (`featcache rm {entry.path}`)"
            )
        if self.is_replaced(entry):
            return Verdict.REPLACED
        if not self._tried and entry.rank == COMPLETE_RANK and self._search[0] in entry.path.parents:
            self._tried = True
            self.retry = try_again(entry.cache, self._source)
            if self.retry is not None:
                self._reporter.message(str(self.retry))
        return Verdict.RESTORED if self.retry is not None and self.retry.blocks else Verdict.ANSWER

    def is_replaced(self, entry: Entry) -> bool:
        """Return whether a cache, complete or not, was made from other images; `identity` then tells both apart.

        Raises:
            OutdatedCacheError: even the cache with that new identity was made from other images.
            CacheError: the cache is damaged.
            UnavailableError: an image that has to be compared cannot be read.
        """
        if entry.path in self._same:
            return False
        cache = entry.cache
        readers = {name: cache[name] for name in cache.inventory.splits}
        provenance = entry.provenance if entry.complete else {}
        digest = self._freshness.replaced(entry.path, provenance, cache, readers)
        if digest and self._replaced:
            raise OutdatedCacheError(
                f"{entry.path} was made while images were replaced; remove it (`featcache rm {entry.path}`) and run the same "
                "command again"
            )
        self._replaced = digest or self._replaced
        if not digest:
            self._same.add(entry.path)
        return bool(digest)

    def record(self, directory: Path) -> None:
        """Store the states of the dataset's files with a cache that is made from these files."""
        self._freshness.record(directory)


def holds(entry: Entry, selection: FeatureSelection, source: Source) -> bool:
    """Return whether a complete cache holds everything requested.

    Raises:
        CacheError: the cache is damaged; the message says what to do.
    """
    try:
        manifest = open_cache(entry.path).manifest
    except CacheError as error:
        raise damaged(entry, error) from None
    return selection.are_held(manifest.inventory, manifest.spec.backbone, list(source.splits))


def damaged(entry: Entry, error: CacheError) -> CacheError:
    """Add to the error of a damaged cache how to repair it."""
    return CacheError(f"{error}; remove the cache (`featcache rm {entry.path}`) and extract it again")
