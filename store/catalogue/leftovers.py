"""What can go from a root: remains of killed removals, extractions nobody finished, caches that exist twice."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featcache.store.catalogue.additions import addition_files, drop_addition
from featcache.store.catalogue.entries import folders
from featcache.store.catalogue.removal import REMOVING_PREFIX, remove_cache, remove_tree, writers
from featcache.store.catalogue.usage import usage
from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.files import PARTIAL_SUFFIX
from featcache.store.journal import FEATURES, JOURNAL
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.plain import sha256_plain

# A temporary file beside a complete cache belongs to a command that takes less than a second.
SETTLED_S = 3600.0
DAY_S = 86_400.0


@dataclass(frozen=True)
class Leftover:
    """Something that can go, and why."""

    path: Path
    kind: str
    """``removal``, ``partial``, ``journal``, ``incomplete``, ``addition`` or ``duplicate``."""
    reason: str
    num_bytes: int
    modified: float
    """Seconds since the epoch of the newest change inside."""

    def remove(self) -> None:
        """Remove it.

        Raises:
            CacheBusyError: a process has begun to write it.
            CacheError: it lies where one may not write.
        """
        if self.kind == "duplicate" or (self.kind == "incomplete" and (self.path / FEATURES).exists()):
            remove_cache(self.path)
            return
        if self.kind == "addition":
            drop_addition(self.path)
            return
        if self.kind in ("incomplete", "journal") and writers(_cache_of(self.path)):
            raise CacheBusyError(f"{self.path}: another process is writing this cache")
        try:
            remove_tree(self.path)
        except PermissionError as error:
            raise CacheError(f"{self.path} cannot be removed ({error.strerror}); ask its owner") from None


def find_leftovers(root: Path, older_than_days: float, now: float | None = None) -> list[Leftover]:
    """Return what can go under one root, nothing of which a live process is writing.

    Args:
        root: the root; a root that does not exist has no leftovers.
        older_than_days: age in days from which an incomplete cache counts; its age is that of its newest file.
        now: seconds since the epoch; the clock if not given.
    """
    now = time.time() if now is None else now
    found = list(_fragments(root, now - older_than_days * DAY_S))
    complete = []
    for folder, match in folders(root):
        if folder.is_symlink():
            continue  # what lies behind a link is somebody else's to keep
        if (folder / MANIFEST_FILE).exists():
            complete.append((match["key"], folder))
            found += _remains(folder, now - SETTLED_S, now - older_than_days * DAY_S)
        elif (folder / JOURNAL).is_dir() and not writers(folder):
            reason = f"not touched for {older_than_days:g} days or more"
            found += _if_older(folder, "incomplete", reason, now - older_than_days * DAY_S)
    return [*found, *_duplicates(complete)]


def _fragments(root: Path, since: float) -> Iterator[Leftover]:
    """Folders of killed removals, and partial copies that nobody goes on with."""
    for path in sorted(root.glob(f"*/{REMOVING_PREFIX}*")):
        found = usage(path)
        yield Leftover(path, "removal", "a removal was interrupted", found.num_bytes, found.modified)
    for path in sorted(root.glob(f"*/*{PARTIAL_SUFFIX}")):
        yield from _if_older(path, "partial", "a write was interrupted", since)


def _remains(folder: Path, since: float, unfinished_since: float) -> Iterator[Leftover]:
    """What the run that completed a cache, or one that changed its small files, left in it when it was killed."""
    if (folder / JOURNAL).is_dir() and not writers(folder):
        if addition_files(folder):
            newest = usage(folder / JOURNAL).modified
            size = sum(path.stat().st_size for path in addition_files(folder) if path.is_file())
            if newest < unfinished_since:
                yield Leftover(folder, "addition", "what was added to it was not finished", size, newest)
            return
        yield from _if_older(folder / JOURNAL, "journal", "the cache is complete", since)
    paths = (*folder.glob(f"*{PARTIAL_SUFFIX}"), *folder.glob(f"{FEATURES}/*/*/*{PARTIAL_SUFFIX}"))
    for path in sorted(paths):
        if path.parent.resolve().is_relative_to(folder.resolve()):  # not what a link in the cache leads to
            yield from _if_older(path, "partial", "a write was interrupted", since)


def _if_older(path: Path, kind: str, reason: str, since: float) -> Iterator[Leftover]:
    found = usage(path)
    if found.modified < since:
        yield Leftover(path, kind, reason, found.num_bytes, found.modified)


def _duplicates(complete: list[tuple[str, Path]]) -> Iterator[Leftover]:
    """Caches with the very manifest of another one, which is whole: the first of them stays."""
    kept: dict[tuple[str, str], Path] = {}
    for key, folder in complete:
        if sum(other == key for other, _ in complete) < 2:
            continue
        try:
            same = (key, sha256_plain(folder / MANIFEST_FILE))
        except CacheError:
            continue  # a link or a pipe: nobody can tell what it is the same as
        if same in kept:
            found = usage(folder)
            reason = f"the same as {kept[same].parent.name}/{kept[same].name}"
            yield Leftover(folder, "duplicate", reason, found.num_bytes, found.modified)
        elif _is_whole(folder):
            kept[same] = folder


def _is_whole(folder: Path) -> bool:
    """Whether the manifest reads and every file has its recorded size."""
    try:
        manifest = Manifest.read(folder)
        files = {path: file for record in manifest.blocks for path, file in record.files.items()}
        return all(
            (folder / FEATURES / path).stat().st_size == file.bytes
            for path, file in (files | dict(manifest.metadata)).items()
        )
    except (CacheError, OSError):
        return False


def _cache_of(path: Path) -> Path:
    return path.parent if path.name == JOURNAL else path
