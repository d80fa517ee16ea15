"""The error classes of featcache. Each also is the built-in that a caller would already catch.

A message says what is wrong, where, and what to do next. ``exit_status`` is what the command line ends with:
1 when the work failed, 2 when the request was wrong or ambiguous.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FeatcacheError(Exception):
    """Base of all errors that featcache raises on purpose."""

    exit_status = 1


class RequestError(FeatcacheError, ValueError):
    """The request itself is wrong or ambiguous; nothing was done."""

    exit_status = 2


class UnknownNameError(RequestError):
    """A name (of a model, dataset, head, layer, token kind, ...) that does not exist."""

    def __init__(self, what: str, name: str, valid: Iterable[str], hint: str = "") -> None:
        """Build the message: the nearest of `valid`, or all of them where none is near, then `hint`."""
        names = [str(v) for v in valid]
        by_lower_case = {valid_name.lower(): valid_name for valid_name in names}
        near = [
            by_lower_case[match] for match in get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.5)
        ]
        if near:
            listed = f"did you mean {', '.join(near)}?"
        else:
            listed = f"valid: {', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")
        super().__init__(f"unknown {what} {name!r}; {listed}" + (f" {hint}" if hint else ""))


class DatasetError(FeatcacheError, ValueError):
    """The dataset cannot be used as it is: a missing folder, an empty class, an image that does not decode."""


class BackboneError(FeatcacheError, RuntimeError):
    """The backbone cannot be loaded, or its features would be wrong."""


class CacheError(FeatcacheError, ValueError):
    """A cache on disk is damaged, foreign or does not hold what was asked for."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """No cache matches."""

    exit_status = 2


class IncompleteCacheError(CacheError):
    """The extraction of a cache has not finished, so it cannot be read yet."""


class PartialCacheError(CacheError):
    """The cache is a partial copy, and more of it is needed; the message has the command that fetches the rest."""


class RemoteError(FeatcacheError, ConnectionError):
    """A remote cannot be reached, refuses, or sends something other than it should."""


class CacheBusyError(FeatcacheError, BlockingIOError):
    """Another process is writing the cache."""


class CacheCompletedError(FeatcacheError, FileExistsError):
    """The cache is complete, so there is nothing to write."""


class InterruptedRunError(FeatcacheError):
    """Ctrl-C stopped the run; what was committed stays and the next run goes on from there."""

    exit_status = 130
