"""The catalogue: which caches the roots hold, and which one a request or a name means.

A root holds ``<dataset>/<model>-<key>/``. Several roots are searched in order; writes go to the first.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from featcache.store.errors import CacheError, CacheNotFoundError, RequestError
from featcache.store.journal import JOURNAL, PLAN_FILE
from featcache.store.manifest import MANIFEST_FILE
from featcache.store.reader import Cache, open_cache
from featcache.store.requests import answers, recorded_requests
from featcache.store.spec import KEY_DIGITS, CacheSpec

ROOT_VARIABLE = "FEATCACHE_ROOT"
_FOLDER = re.compile(rf"(?P<model>.+)-(?P<key>[0-9a-f]{{{KEY_DIGITS}}})")


@dataclass(frozen=True)
class Entry:
    """One cache folder found under a root."""

    path: Path
    dataset: str
    """Slug of the dataset's name."""
    model: str
    """Slug of the model's name."""
    key: str
    complete: bool

    @cached_property
    def cache(self) -> Cache:
        """The cache itself, partial if it is incomplete.

        Raises:
            CacheError: its metadata are damaged.
        """
        return open_cache(self.path, allow_partial=True)

    @property
    def modified(self) -> float:
        """Seconds since the epoch when the manifest (or the plan) was written."""
        return (self.path / (MANIFEST_FILE if self.complete else f"{JOURNAL}/{PLAN_FILE}")).stat().st_mtime

    @property
    def name(self) -> str:
        """``<dataset>/<model>-<key>``."""
        return f"{self.dataset}/{self.path.name}"


def roots(given: Sequence[Path] = ()) -> list[Path]:
    """Return the roots: those given, else ``FEATCACHE_ROOT`` (several separated by ``:``), else the user's cache folder."""
    if given:
        return list(given)
    named = [Path(part) for part in os.environ.get(ROOT_VARIABLE, "").split(os.pathsep) if part]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [root.expanduser() for root in named] or [home / "featcache"]


def slug(name: str) -> str:
    """Return `name` as at most 64 characters that are safe in any file system."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64].strip("-") or "unnamed"


def cache_directory(root: Path, dataset: str, model: str, spec: CacheSpec) -> Path:
    """Folder for a new cache; look-up is by key, so the names are for people."""
    return root / slug(dataset) / f"{slug(model)}-{spec.key}"


def scan(search: Sequence[Path]) -> Iterator[Entry]:
    """All caches under the roots, complete or not; each key once per dataset folder, the first root first."""
    seen = set()
    for root in search:
        for manifest in sorted(
            (*root.glob(f"*/*/{MANIFEST_FILE}"), *root.glob(f"*/*/{JOURNAL}/{PLAN_FILE}"))
        ):
            complete = manifest.name == MANIFEST_FILE
            path = manifest.parent if complete else manifest.parent.parent
            match = _FOLDER.fullmatch(path.name)
            if match and (path.parent.name, path.name) not in seen:
                complete = (path / MANIFEST_FILE).exists()
                seen.add((path.parent.name, path.name))
                yield Entry(path, path.parent.name, match["model"], match["key"], complete)


def find_key(search: Sequence[Path], key: str) -> Entry | None:
    """Return the cache with this key, a complete one if there is one."""
    found = [entry for entry in scan(search) if entry.key == key]
    return max(found, key=lambda entry: entry.complete, default=None)


def find_request(search: Sequence[Path], request: Mapping[str, Any]) -> Entry | None:
    """Return the cache that answers a literal request, a complete one if there is one."""
    found = [
        entry for entry in scan(search) if any(answers(r, request) for r in recorded_requests(entry.path))
    ]
    return max(found, key=lambda entry: entry.complete, default=None)


def select(
    search: Sequence[Path], cache: str | None = None, model: str | None = None, dataset: str | None = None
) -> Entry:
    """Return the one cache that is meant.

    Args:
        search: the roots.
        cache: a folder, a key or the beginning of one, or ``<dataset>/<model>-<key>``.
        model: name of the model as it was extracted.
        dataset: name of the dataset as it was extracted.

    Raises:
        CacheNotFoundError: none matches; the message lists what there is.
        RequestError: several match; the message lists them.
    """
    folder = _folder_entry(Path(cache)) if cache else None
    if folder is not None:
        return folder
    entries = list(scan(search))
    found = [entry for entry in entries if _matches(entry, cache, model, dataset)]
    if not found:
        raise CacheNotFoundError(_nothing_found(search, entries, cache, model, dataset))
    complete = [entry for entry in found if entry.complete] or found
    if len(complete) > 1:
        listed = "\n  ".join(entry.name for entry in complete[:10])
        raise RequestError(f"{len(complete)} caches match; name one with --cache:\n  {listed}")
    return complete[0]


def completed_last(search: Sequence[Path]) -> Entry:
    """Return the cache that was completed last.

    Raises:
        CacheNotFoundError: there is no complete cache; the message says what there is and what to do.
    """
    entries = list(scan(search))
    complete = [entry for entry in entries if entry.complete]
    if not complete:
        raise CacheNotFoundError(_nothing_found(search, entries, None, None, None))
    return max(complete, key=_completion_time)


def _folder_entry(path: Path) -> Entry | None:
    """The cache at `path`, wherever it lies and whatever its folder is called; None if there is none."""
    complete = (path / MANIFEST_FILE).is_file()
    if not complete and not (path / JOURNAL / PLAN_FILE).is_file():
        return None
    path = path.resolve()
    match = _FOLDER.fullmatch(path.name)
    key = match["key"] if match else open_cache(path, allow_partial=True).key
    return Entry(path, path.parent.name, match["model"] if match else path.name, key, complete)


def _completion_time(entry: Entry) -> float:
    # A copied cache has a new file time, so what provenance says goes first.
    try:
        completed = entry.cache.provenance.get("completed_at")
    except CacheError:
        completed = None
    return float(completed) if isinstance(completed, int | float) else entry.modified


def _matches(entry: Entry, cache: str | None, model: str | None, dataset: str | None) -> bool:
    if cache is not None and not (entry.key.startswith(cache) or cache in (entry.name, entry.path.name)):
        return False
    if model is not None and slug(model) != entry.model and model not in _names(entry, "model"):
        return False
    return dataset is None or slug(dataset) == entry.dataset or dataset in _names(entry, "dataset")


def _names(entry: Entry, what: str) -> list[str]:
    try:
        names = entry.cache.provenance.get(f"{what}_names", [])
    except CacheError:
        return []
    return names if isinstance(names, list) else []


def _nothing_found(
    search: Sequence[Path],
    entries: Sequence[Entry],
    cache: str | None,
    model: str | None,
    dataset: str | None,
) -> str:
    asked = ", ".join(
        f"{what} {value}"
        for what, value in (("cache", cache), ("model", model), ("dataset", dataset))
        if value
    )
    where = os.pathsep.join(str(root) for root in search)
    if not entries:
        return (
            f"there is no cache under {where}; make one with `featcache extract --model NAME --dataset NAME`"
        )
    listed = "\n  ".join(entry.name + ("" if entry.complete else "  (incomplete)") for entry in entries[:10])
    lead = f"no cache matches {asked}" if asked else "there is no complete cache"
    return f"{lead} under {where}; there are:\n  {listed}"
