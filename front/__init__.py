"""featcache: all-layer token features of frozen vision transformers, cached once; heads trained from the cache.

The rooms behind this door: `featcache.extract` (images to tokens), `featcache.store` (the cache on disk),
`featcache.probe` (tokens to heads). Importing this package imports none of them.
"""

from importlib.metadata import version as _version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.store.reading.reader import Cache

__all__ = ["__version__", "open"]

__version__ = _version("featcache")


def open(directory: "str | Path", *, allow_partial: bool = False) -> "Cache":
    """Open a cache for reading; nothing is loaded until it is asked for.

    Args:
        directory: folder of the cache, the one that holds manifest.json (`featcache ls` prints it).
        allow_partial: also open a cache whose extraction has not finished.

    Raises:
        CacheNotFoundError: there is no cache.
        IncompleteCacheError: the extraction has not finished.
        CacheError: its metadata are damaged.

    Example:
        >>> train = featcache.open("caches/flowers/vit-l-14-0123456789ab")["train"]  # doctest: +SKIP
        >>> features = train.load(["11", "final"], ["cls"])  # [N, 2, 1, D]          # doctest: +SKIP
    """
    from featcache.store.reading.reader import open_cache

    return open_cache(directory, allow_partial=allow_partial)
