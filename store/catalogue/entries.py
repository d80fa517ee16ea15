"""The cache folders under the roots.

A root holds ``<dataset>/<model>-<key>/``. Several roots are searched in order; writes go to the first.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from featcache.store.address import Address, is_address, parse_address, split_roots
from featcache.store.errors import CacheError, RequestError
from featcache.store.files import JsonObject, is_folder_entry, read_sealed
from featcache.store.home import expanded, user_cache
from featcache.store.journal import JOURNAL, PLAN_FILE
from featcache.store.manifest import MANIFEST_FILE
from featcache.store.partial_copy import HELD_FILE
from featcache.store.provenance import PROVENANCE_FILE
from featcache.store.reading.reader import Cache, open_cache
from featcache.store.spec import KEY_DIGITS, CacheSpec

ROOT_VARIABLE = "FEATCACHE_ROOT"
COMPLETE_RANK = 2
Skipped = Callable[[Path, OSError], object]
"""Called with a folder that cannot be read."""
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

    @property
    def root(self) -> Path:
        """The root it was found under."""
        return self.path.parent.parent

    @cached_property
    def rank(self) -> int:
        """`COMPLETE_RANK` for a complete cache, 1 for a copy that may be partial, 0 for one that is not complete."""
        return 0 if not self.complete else 1 if (self.path / HELD_FILE).exists() else COMPLETE_RANK

    @cached_property
    def cache(self) -> Cache:
        """The cache itself, partial if it is incomplete.

        Raises:
            CacheError: its metadata are damaged.
        """
        return open_cache(self.path, allow_partial=True)

    @cached_property
    def provenance(self) -> JsonObject:
        """Provenance of the cache; empty where it is unknown. Reads that one file, not the manifest."""
        try:
            return read_sealed(self.path / PROVENANCE_FILE)
        except (FileNotFoundError, CacheError):
            return {}

    @property
    def modified(self) -> float:
        """Seconds since the epoch when the manifest (or the plan) was written."""
        return (self.path / (MANIFEST_FILE if self.complete else f"{JOURNAL}/{PLAN_FILE}")).stat().st_mtime

    @property
    def name(self) -> str:
        """``<dataset>/<model>-<key>``."""
        return f"{self.dataset}/{self.path.name}"


def roots(given: Sequence[Path] = ()) -> list[Path]:
    """Return the roots: those given, else ``FEATCACHE_ROOT`` (several separated by ``:``), else the user's cache folder.

    Raises:
        RequestError: a remote stands where a folder is needed, or there is no home folder for the default.
    """
    if given:
        for root in given:
            if is_address(str(root)):
                raise RequestError(
                    "--root takes folders, not addresses; `featcache pull` and FEATCACHE_ROOT take those"
                )
        return [expanded(root) for root in given]
    parts = split_roots(os.environ.get(ROOT_VARIABLE, ""))
    if parts and is_address(parts[0]):
        raise RequestError(
            f"{ROOT_VARIABLE} must begin with a folder, where new caches go; addresses come after it"
        )
    named = [expanded(part) for part in parts if not is_address(part)]
    return named or [user_cache() / "featcache"]


def remote_roots(given: Sequence[Path] = ()) -> list[Address]:
    """Return the remotes that ``FEATCACHE_ROOT`` names after its folders; none where roots are given.

    Raises:
        RequestError, UnknownNameError: one is no address.
    """
    parts = [] if given else split_roots(os.environ.get(ROOT_VARIABLE, ""))
    return [parse_address(part) for part in parts if is_address(part)]


def slug(name: str) -> str:
    """Return `name` as at most 64 characters that are safe in any file system."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:64].strip("-") or "unnamed"


def cache_directory(root: Path, dataset: str, model: str, spec: CacheSpec) -> Path:
    """Return the folder for a new cache; look-up is by key, so the names are for people."""
    return root / slug(dataset) / f"{slug(model)}-{spec.key}"


def folders(root: Path, skipped: Skipped | None = None) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield all folders ``*/<model>-<key>`` under one root, caches or not; names with a leading dot are never caches.

    Args:
        root: the root.
        skipped: called with each folder that cannot be listed, and the reason.
    """
    for dataset in _subfolders(root, skipped):
        for folder in _subfolders(dataset, skipped):
            match = _FOLDER.fullmatch(folder.name)
            if match:
                yield folder, match


def scan(search: Sequence[Path]) -> Iterator[Entry]:
    """Yield all caches under the roots, complete or not; each once per dataset folder. `unreadable` lists the folders left out.

    The first root that holds a cache wins, but a complete one goes before one that is still being extracted, and a
    copy that is surely whole before one that may be partial.
    """
    entries: dict[tuple[str, str], Entry] = {}
    for root in search:
        for folder, match in folders(root):
            try:
                complete = _is_complete(folder)
            except OSError:
                continue
            if complete is None:
                continue
            place = (folder.parent.name, folder.name)
            entry = Entry(folder, folder.parent.name, match["model"], match["key"], complete)
            if place not in entries or entry.rank > entries[place].rank:
                entries[place] = entry
    yield from entries.values()


@dataclass(frozen=True)
class Unreadable:
    """A folder under a root that may hold caches but cannot be read."""

    path: Path
    root: Path
    reason: str
    dataset: str = ""
    """Names as in `Entry`; empty if the folder is not that of a cache."""
    model: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.path} cannot be read ({self.reason}), so it was passed over"


def unreadable(search: Sequence[Path]) -> list[Unreadable]:
    """Return the folders that `scan` leaves out because they cannot be read."""
    closed: list[Unreadable] = []
    for root in search:

        def skipped(path: Path, error: OSError, root: Path = root) -> None:
            dataset = "" if path == root else path.name
            closed.append(Unreadable(path, root, error.strerror or str(error), dataset))

        for folder, match in folders(root, skipped):
            try:
                _is_complete(folder)
            except OSError as error:
                reason = error.strerror or str(error)
                closed.append(
                    Unreadable(folder, root, reason, folder.parent.name, match["model"], match["key"])
                )
    return closed


def _is_complete(folder: Path) -> bool | None:
    """Return whether the cache in `folder` is complete; None if there is no cache.

    Raises:
        OSError: the manifest or the plan may not be read.
    """
    for path, complete in ((folder / MANIFEST_FILE, True), (folder / JOURNAL / PLAN_FILE, False)):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return complete
    return None


def folder_entry(path: Path) -> Entry | None:
    """Return the cache at `path`, wherever it lies and whatever its folder is called; None if there is none."""
    complete = (path / MANIFEST_FILE).is_file()
    if not complete and not (path / JOURNAL / PLAN_FILE).is_file():
        return None
    path = path.resolve()
    match = _FOLDER.fullmatch(path.name)
    key = match["key"] if match else open_cache(path, allow_partial=True).key
    return Entry(path, path.parent.name, match["model"] if match else path.name, key, complete)


def _subfolders(folder: Path, skipped: Skipped | None) -> list[Path]:
    """Return folders in `folder`, links to folders among them, by name; none where it does not exist or may not be read."""
    try:
        with os.scandir(folder) as items:
            return sorted(Path(item.path) for item in items if item.name[0] != "." and is_folder_entry(item))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if skipped is not None:
            skipped(folder, error)
        return []
