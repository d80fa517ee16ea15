"""The error classes of featcache. Each also is the built-in that a caller would already catch.

A message says what is wrong, where, and what to do next. ``exit_status`` is what the command line ends with:
1 when the work failed, 2 when the request was wrong or ambiguous.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

ALIKE = 0.65
"""One wrong letter in three; with less, ``nope`` was taken for ``pets``."""


class FeatcacheError(Exception):
    """Base of all errors that featcache raises on purpose."""

    exit_status = 1


class RequestError(FeatcacheError, ValueError):
    """The request itself is wrong or ambiguous; nothing was done."""

    exit_status = 2


class UnknownNameError(RequestError):
    """A name (of a model, dataset, head, layer, token kind, ...) that does not exist."""

    def __init__(
        self, what: str, name: str, valid: Iterable[str], hint: str = "", near: Sequence[str] | None = None
    ) -> None:
        """Build the message: what may have been meant, `near` if given, else all (or many) of `valid`; then `hint`."""
        names = [str(v) for v in valid]
        near = similar_names(name, names) if near is None else near
        if near:
            listed = f"did you mean {', '.join(near)}?"
        elif names:
            listed = f"valid: {', '.join(names[:20])}" + (", ..." if len(names) > 20 else "")
        else:
            listed = "there are none"
        super().__init__(f"unknown {what} {name!r}; {listed}" + (f" {hint}" if hint else ""))


class UnknownSplitError(UnknownNameError, KeyError):
    """A split that a cache does not hold; a `KeyError` as well, since a cache is a mapping of its splits."""

    __str__ = Exception.__str__  # KeyError's would put the message in quotes


def similar_names(name: str, valid: Iterable[str]) -> list[str]:
    """Return up to three of `valid` that `name` may have been meant as, in any case of letters, the likeliest first."""
    text, names = name.lower(), {candidate.lower(): candidate for candidate in valid}
    if text.lstrip("-").isdigit():  # 99 is no slip of the finger for 9
        return []
    similar = get_close_matches(text, names, n=3, cutoff=ALIKE)
    if (
        not similar and len(text) >= 3
    ):  # or part of a name: `lasso` of `group-lasso`, `dinov5` of `dinov2-vit-s-14`
        beginning = get_close_matches(
            text, [candidate[: len(text)] for candidate in names], n=1, cutoff=ALIKE
        )
        similar = [
            candidate for candidate in names if text in candidate or candidate.startswith(tuple(beginning))
        ]
    return [names[candidate] for candidate in similar[:3]]


class DatasetError(FeatcacheError, ValueError):
    """The dataset cannot be used as it is: a missing folder, an empty class, an image that does not decode."""


class UnavailableError(DatasetError):
    """A file of the dataset is gone or cannot be read; its content may still be intact."""


class BackboneError(FeatcacheError, RuntimeError):
    """The backbone cannot be loaded, or its features would be wrong."""


class CacheError(FeatcacheError, ValueError):
    """A cache on disk is damaged, foreign or does not hold what was asked for."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """No cache matches."""

    exit_status = 2


class HeadNotFoundError(RequestError, FileNotFoundError):
    """There is no saved head in the folder that was named."""


class NoLabelsError(RequestError):
    """Labels are needed, and the cache or the dataset has none."""


class IncompleteCacheError(CacheError):
    """The extraction of a cache has not finished, so it cannot be read yet."""


class PartialCacheError(CacheError):
    """The cache is a partial copy, and more of it is needed; the message has the command that fetches the rest."""


class DivergedError(FeatcacheError, ArithmeticError):
    """Every training of a head diverged: losses, weights or outputs are not finite.

    Args:
        message: names the heads.
        rows: the results of all other requested heads.
    """

    def __init__(self, message: str, rows: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class RemoteError(FeatcacheError, ConnectionError):
    """A remote cannot be reached, refuses, or sends something other than it should."""


class MissingError(RemoteError):
    """A remote has nothing at this path."""


class CacheBusyError(FeatcacheError, BlockingIOError):
    """Another process is writing the cache."""


class CacheCompletedError(FeatcacheError, FileExistsError):
    """The cache is complete, so there is nothing to write."""


class InterruptedRunError(FeatcacheError):
    """Ctrl-C stopped the run; committed blocks stay, and the next run resumes after them."""

    exit_status = 130
