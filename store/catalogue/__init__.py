"""The catalogue: which cache a request or a name means, among all that the roots hold."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from featcache.store.address import is_address, parse_address
from featcache.store.catalogue.entries import (
    Entry,
    Unreadable,
    cache_directory,
    folder_entry,
    folders,
    remote_roots,
    roots,
    scan,
    slug,
    unreadable,
)
from featcache.store.errors import CacheError, CacheNotFoundError, RequestError
from featcache.store.preprocessing import distinguish, preprocessing_parts
from featcache.store.progress import Reporter
from featcache.store.requests import answers, recorded_requests

__all__ = [
    "Entry",
    "Unreadable",
    "cache_directory",
    "completed_last",
    "find_key",
    "find_request",
    "folders",
    "has_model_name",
    "preprocessing_beside",
    "remote_roots",
    "report_unreadable",
    "roots",
    "scan",
    "select",
    "slug",
    "unreadable",
]


MAX_TIME = 2**40
"""Seconds; a forged time must not overflow."""
MIN_PREFIX = 4
"""Fewest digits of a key that name a cache for operations that cannot be undone, and on a remote."""


def find_key(search: Sequence[Path], key: str) -> Entry | None:
    """Return the cache with this key, a complete one if there is one."""
    matching = [entry for entry in scan(search) if entry.key == key]
    return max(matching, key=lambda entry: entry.rank, default=None)


def find_request(
    search: Sequence[Path], request: Mapping[str, Any], prefer: Callable[[Entry], bool] | None = None
) -> Entry | None:
    """Return the cache that answers a literal request, a complete one if there is one.

    Args:
        search: the roots.
        request: the literal request.
        prefer: called where several caches are answers; one of which it holds goes first.
    """
    matching = [
        entry for entry in scan(search) if any(answers(r, request) for r in recorded_requests(entry.path))
    ]
    if prefer is None or len(matching) < 2:
        return max(matching, key=lambda entry: entry.rank, default=None)
    return max(matching, key=lambda entry: (entry.rank, prefer(entry)))


def select(
    search: Sequence[Path],
    cache: str | None = None,
    models: Collection[str] = (),
    dataset: str | None = None,
    *,
    exact: bool = False,
) -> Entry:
    """Return the one cache that is meant.

    Args:
        search: the roots.
        cache: a folder, a key or the beginning of one, or ``<dataset>/<model>-<key>``.
        models: names of one model, one of which it was extracted under; none for any model.
        dataset: name of the dataset as it was extracted.
        exact: for operations that cannot be undone: count incomplete caches even if complete ones match, and require at
            least `MIN_PREFIX` digits of a key.

    Raises:
        CacheNotFoundError: none matches; the message lists what there is.
        CacheError: the named folder may not be read.
        RequestError: several caches match, or the beginning of a key is too short; the message says which.
    """
    if cache and is_address(cache):
        raise RequestError(f"{parse_address(cache)} is on a remote; `featcache pull` fetches it")
    folder = _named_folder(cache) if cache else None
    if folder is not None:
        return folder
    entries = list(scan(search))
    matching = [entry for entry in entries if _matches(entry, cache, models, dataset)]
    if not matching:
        raise CacheNotFoundError(_not_found_error(search, entries, cache, models, dataset))
    short = exact and cache is not None and len(cache) < MIN_PREFIX
    if short and not any(cache in (entry.name, entry.path.name) for entry in matching):
        listed = "\n  ".join(entry.name for entry in matching[:10])
        raise RequestError(
            f"{cache!r} is too short for the beginning of a key, which needs {MIN_PREFIX} digits here; it may mean:\n  {listed}"
        )
    meant = matching if exact else [entry for entry in matching if entry.complete] or matching
    meant = _distinct_entries(meant)
    if len(meant) > 1:
        listed = "\n  ".join(_told_apart(meant[:10]))
        how = "name one in full" if exact else "name one with --cache"
        raise RequestError(f"{len(meant)} caches match; {how}:\n  {listed}")
    return meant[0]


def report_unreadable(search: Sequence[Path], reporter: Reporter) -> None:
    """Report each unreadable folder in one line, for searches that any cache under the roots could answer."""
    for folder in unreadable(search):
        reporter.message(f"note: {folder}")


def _told_apart(entries: Sequence[Entry]) -> list[str]:
    """Return the names of caches, with the preprocessing of those that differ in it from others of their model and dataset."""
    words = preprocessing_beside(entries)
    return [
        f"{entry.name}  ({words[entry.path]})" if words.get(entry.path) else entry.name for entry in entries
    ]


def preprocessing_beside(entries: Sequence[Entry]) -> dict[Path, str]:
    """Return the words for the preprocessing of caches of one model and dataset that differ in it, by folder."""
    alike: dict[tuple[str, str], dict[Path, Mapping[str, str]]] = {}
    for entry in entries:
        with suppress(CacheError, OSError):  # a damaged one is told by those who open it
            backbone = entry.cache.spec.backbone
            # An alias and the explicit name are one model; other weights of its architecture are another.
            name = next(iter(_names(entry)[::-1]), entry.model)
            same = alike.setdefault((entry.dataset, name), {})
            same[entry.path] = preprocessing_parts(backbone)
    return {
        path: words
        for same in alike.values()
        for path, words in zip(same, distinguish(list(same.values())), strict=True)
        if words
    }


def _named_folder(path: str) -> Entry | None:
    try:
        return folder_entry(Path(path))
    except PermissionError as error:
        raise CacheError(f"{path} cannot be read ({error.strerror}); ask its owner") from None


def _distinct_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Return each folder once, since a link to a dataset's folder only gives its caches a second name."""
    return list({os.path.realpath(entry.path): entry for entry in reversed(entries)}.values())[::-1]


def completed_last(search: Sequence[Path]) -> Entry:
    """Return the cache that was completed last.

    Raises:
        CacheNotFoundError: there is no complete cache; the message says what there is and what to do.
    """
    entries = list(scan(search))
    complete = [entry for entry in entries if entry.complete]
    if not complete:
        raise CacheNotFoundError(_not_found_error(search, entries, None, (), None))
    return max(complete, key=_completion_time)


def _completion_time(entry: Entry) -> float:
    # A copied cache has a new file time, so what provenance says goes first.
    completed = entry.provenance.get("completed_at")
    if isinstance(completed, int | float) and 0 < completed < MAX_TIME:
        return float(completed)
    return entry.modified


def _matches(entry: Entry, cache: str | None, models: Collection[str], dataset: str | None) -> bool:
    if cache is not None and not (entry.key.startswith(cache) or cache in (entry.name, entry.path.name)):
        return False
    if models and not has_model_name(entry, models):
        return False
    # `imagefolder:some/where/photos` was stored under the folder's name.
    return dataset is None or slug(Path(dataset.partition(":")[2] or dataset).name) == entry.dataset


def has_model_name(entry: Entry, models: Collection[str]) -> bool:
    """Return whether a cache was extracted from the model with these names, whichever of them its folder has."""
    return entry.model in map(slug, models) or not {*models}.isdisjoint(_names(entry))


def _names(entry: Entry) -> list[str]:
    names = entry.provenance.get("model_names", [])
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _not_found_error(
    search: Sequence[Path],
    entries: Sequence[Entry],
    cache: str | None,
    models: Collection[str],
    dataset: str | None,
) -> str:
    asked = ", ".join(
        f"{label}{value}"
        for label, value in (("", cache), ("model ", next(iter(models), None)), ("dataset ", dataset))
        if value
    )
    where = os.pathsep.join(str(root) for root in search)
    closed = unreadable(search)
    if closed:
        more = f" and {len(closed) - 1} more folders" if closed[1:] else ""
        where += f" ({closed[0].path}{more} cannot be read: {closed[0].reason})"
    if not entries:
        return (
            f"there is no cache under {where}; make one with `featcache extract --model NAME --dataset NAME`"
        )
    listed = "\n  ".join(entry.name + ("" if entry.complete else "  (incomplete)") for entry in entries[:10])
    lead = f"no cache matches {asked}" if asked else "there is no complete cache"
    return f"{lead} under {where}; there are:\n  {listed}"
