"""Types of the arguments of the public functions, and what they are turned into."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from featcache.store.catalogue import roots
from featcache.store.reading.reader import Cache
from featcache.store.text import parse_names

PathLike = str | Path
CacheName = Cache | str | Path
"""An open cache; or its folder, its key or the beginning of one, or ``DATASET/MODEL-KEY``."""
Roots = str | Path | Sequence[str | Path]
"""One root or several; none means ``FEATCACHE_ROOT``, or the user's cache folder."""


def roots_of(root: Roots) -> list[Path]:
    """Return the roots that are given, or those of the command line.

    Raises:
        RequestError: an address stands where a folder is needed.
    """
    return roots([Path(root)] if isinstance(root, str | Path) else [Path(one) for one in root])


def text_of(cache: CacheName) -> str:
    """Return the name that the command line takes for a cache."""
    return str(cache.directory if isinstance(cache, Cache) else cache)


def names_of(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return names that are given one by one, or as a list in one text, such as ``train,test``."""
    return parse_names(given) if isinstance(given, str) else tuple(given)
