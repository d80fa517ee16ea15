"""Find stale files under a root: remains of killed removals, unfinished extractions, and duplicate caches.

A name alone proves nothing. The content of a folder must show that it is ours (`ownership`), and the reason is checked: an
age by files that reading does not touch, a duplicate by the digests of the cache that stays.
"""

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featcache.store import journal
from featcache.store.catalogue.additions import addition_files, drop_addition
from featcache.store.catalogue.entries import Skipped, folders
from featcache.store.catalogue.ownership import (
    OwnershipProof,
    ownership_proof,
    read_proof,
    weak_ownership_proof,
)
from featcache.store.catalogue.removal import (
    REMOVING_PREFIX,
    live_writers,
    remove_cache,
    remove_files,
    remove_journal,
)
from featcache.store.catalogue.usage import usage
from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.files import MAX_DOCUMENT_BYTES, PARTIAL_SUFFIX, sha256_hex, temporary_for
from featcache.store.journal import FEATURES, JOURNAL
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.progress import Reporter, Silent
from featcache.store.regular_files import read_regular
from featcache.store.spec import KEY_DIGITS

# A temporary file beside a complete cache belongs to a command that takes less than a second.
SETTLED_S = 3600.0
DAY_S = 86_400.0
_REMOVING = re.compile(
    rf"{re.escape(REMOVING_PREFIX)}(.*-(?P<key>[0-9a-f]{{{KEY_DIGITS}}})|.+)\.[0-9a-f]{{8}}"
)


@dataclass(frozen=True)
class StaleFile:
    """Something that can go, and why."""

    path: Path
    kind: str
    """``removal``, ``partial``, ``journal``, ``incomplete``, ``addition`` or ``duplicate``."""
    reason: str
    num_bytes: int
    modified: float
    """Seconds since the epoch of the newest change inside."""
    kept: Path | None = None
    """For a duplicate, the cache that stays; every byte of it was found intact."""

    def remove(self) -> list[Path]:
        """Remove the folder if it has not changed since it was found.

        Returns:
            Files and folders inside that are not featcache's; they stay in place.

        Raises:
            CacheBusyError: a process has begun to write the folder, or has changed it.
            CacheError: the folder may not be written.
        """
        try:
            return self._remove()
        except PermissionError as error:
            raise CacheError(f"{self.path} cannot be removed ({error.strerror}); ask its owner") from None

    def _remove(self) -> list[Path]:
        measured = self.path / JOURNAL if self.kind == "addition" else self.path
        try:
            if usage(measured).modified != self.modified:
                raise CacheBusyError(f"{self.path} has changed since it was looked at; run the command again")
        except FileNotFoundError:
            return []  # another process was faster
        if self.kind == "removal":
            shown = _removal_proof(self.path)
            return remove_files(self.path, shown.inventory) if shown else []
        if self.kind == "addition":
            drop_addition(self.path)
        elif self.kind == "journal":
            remove_journal(self.path.parent)
        elif self.kind == "partial" and self.path.is_dir():
            journal.clear(self.path)
        elif self.kind == "partial":
            self.path.unlink(missing_ok=True)
        else:
            if self.kept is not None and not _is_same_copy(self.path, self.kept):
                raise CacheBusyError(f"{self.path} or {self.kept} has changed; run the command again")
            return remove_cache(self.path)
        return []


def find_stale_files(
    root: Path, older_than_days: float, now: float | None = None, reporter: Reporter | None = None
) -> list[StaleFile]:
    """Return the stale files under one root that no live process is writing. Nothing is changed.

    Args:
        root: the root; a root that does not exist has no stale files.
        older_than_days: age in days from which an incomplete cache counts; its age is that of its newest file.
        now: seconds since the epoch; the clock if not given.
        reporter: receives the unreadable folders, and the progress of comparing copies.
    """
    now, reporter = time.time() if now is None else now, reporter or Silent()
    stale: list[StaleFile] = []
    complete: list[tuple[str, Path]] = []

    def skipped(path: Path, error: OSError) -> None:
        reporter.message(f"{path} cannot be read ({error.strerror or error}), so it was left alone")

    for folder, key in _own_folders(root, skipped):
        try:
            shown = ownership_proof(folder, key)
            if shown is not None and shown.manifest is not None:
                complete.append((key, folder))
                stale += _stale_after_completion(
                    folder, shown, now - SETTLED_S, now - older_than_days * DAY_S
                )
            elif (
                not (folder / MANIFEST_FILE).exists()
                and not live_writers(folder)
                and (shown or weak_ownership_proof(folder))
            ):
                reason = f"not touched for {older_than_days:g} days or more"
                stale += _if_older(folder, "incomplete", reason, now - older_than_days * DAY_S)
        except OSError as error:
            skipped(folder, error)
    return [*_removals(root), *stale, *_duplicates(complete, reporter)]


def _own_folders(root: Path, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """Yield folders that may be caches, each once even if it has several names; targets of links belong to others."""
    seen: set[tuple[int, int]] = set()
    for folder, match in folders(root, skipped):
        try:
            if folder.is_symlink() or folder.parent.is_symlink():
                continue
            status = folder.stat()
        except OSError as error:
            skipped(folder, error)
            continue
        if (status.st_dev, status.st_ino) not in seen:  # else the same folder under another mount point
            seen.add((status.st_dev, status.st_ino))
            yield folder, match["key"]


def _removals(root: Path) -> Iterator[StaleFile]:
    """Yield folders of killed removals."""
    for path in sorted(root.glob(f"*/{REMOVING_PREFIX}*")):
        with suppress(OSError):
            if not path.parent.is_symlink() and _removal_proof(path) is not None:
                measured = usage(path)
                yield StaleFile(
                    path, "removal", "a removal was interrupted", measured.num_bytes, measured.modified
                )


def _removal_proof(path: Path) -> OwnershipProof | None:
    """Return the proof that a removal set a folder aside; None if there is none."""
    match = _REMOVING.fullmatch(path.name)
    if match is None or path.is_symlink() or not path.is_dir():
        return None
    shown = ownership_proof(path, match["key"]) if match["key"] else read_proof(path)
    if shown is not None and (shown.manifest or shown.plan):
        return shown
    return weak_ownership_proof(path) or (None if os.listdir(path) else OwnershipProof())


def _stale_after_completion(
    folder: Path, shown: OwnershipProof, since: float, unfinished_since: float
) -> Iterator[StaleFile]:
    """Yield the files left in a complete cache by a killed run that completed it or changed its small files."""
    if (folder / JOURNAL).is_dir() and not (folder / JOURNAL).is_symlink() and not live_writers(folder):
        if addition_files(folder):
            newest = usage(folder / JOURNAL).modified
            size = sum(path.stat().st_size for path in addition_files(folder) if path.is_file())
            if newest < unfinished_since:
                yield StaleFile(folder, "addition", "what was added to it was not finished", size, newest)
            return
        if not journal.foreign_names(folder / JOURNAL):
            yield from _if_older(folder / JOURNAL, "journal", "the cache is complete", since)
    for path in sorted(_temporaries(folder, shown)):
        yield from _if_older(path, "partial", "a write was interrupted", since)


def _temporaries(folder: Path, shown: OwnershipProof) -> Iterator[Path]:
    """Yield temporary files of this cache's files, and its journal if it was set aside."""
    names = shown.names()
    for within in names:
        place = folder / within
        if any(path.is_symlink() for path in (place, *place.parents[: len(place.relative_to(folder).parts)])):
            continue  # the target of a link is not part of the cache
        for path in place.glob(f"*{PARTIAL_SUFFIX}"):
            if path.is_symlink() or not path.is_dir():
                ours = temporary_for(path.name) in names[within]
            else:
                ours = not within and journal.is_set_aside(path.name) and not journal.foreign_names(path)
            if ours:
                yield path


def _if_older(path: Path, kind: str, reason: str, since: float) -> Iterator[StaleFile]:
    measured = usage(path)
    if measured.modified < since:
        yield StaleFile(path, kind, reason, measured.num_bytes, measured.modified)


def _duplicates(complete: list[tuple[str, Path]], reporter: Reporter) -> Iterator[StaleFile]:
    """Yield caches with the same manifest as another one, which is intact in every byte and stays."""
    copies: dict[tuple[str, str], list[Path]] = defaultdict(list)
    of_key = Counter(key for key, _ in complete)
    for key, folder in complete:
        if of_key[key] > 1:
            with suppress(CacheError, OSError):
                copies[key, _digest(folder)].append(folder)
    for group in copies.values():
        kept = next((folder for folder in group if _is_intact(folder, reporter)), None) if group[1:] else None
        for folder in group:
            if kept is not None and folder != kept and not _share_storage(folder, kept):
                measured = usage(folder)
                reason = f"the same as {kept.parent.name}/{kept.name}, which is intact"
                yield StaleFile(folder, "duplicate", reason, measured.num_bytes, measured.modified, kept)


def _digest(folder: Path) -> str:
    return sha256_hex(read_regular(folder / MANIFEST_FILE, MAX_DOCUMENT_BYTES))


def _is_intact(folder: Path, reporter: Reporter) -> bool:
    """Return whether the cache is complete and every file has its recorded digest."""
    if not _has_all_files(folder):
        return False  # costs only a few stat calls
    from featcache.store.checking.damage import FileRole
    from featcache.store.checking.verify import verify

    reporter.message(f"reading {folder}, of which there are copies: one goes only if the other is intact")
    harmless = (FileRole.UNEXPECTED, FileRole.STALE, FileRole.REQUEST, FileRole.FORM)
    checked = verify(folder, reporter=reporter)
    return checked.complete and all(damage.location.role in harmless for damage in checked.damages)


def _has_all_files(folder: Path) -> bool:
    """Return whether the manifest is valid and every file exists with its recorded size."""
    try:
        manifest = Manifest.read(folder)
    except (CacheError, OSError):
        return False
    files = {path: file for record in manifest.blocks for path, file in record.files.items()}
    return not any(
        file.mismatch(folder / FEATURES / path) for path, file in (files | dict(manifest.metadata)).items()
    )


def _is_same_copy(folder: Path, kept: Path) -> bool:
    """Return whether `kept`, which was found intact, is still a complete copy of `folder` in another place."""
    try:
        return _digest(folder) == _digest(kept) and _has_all_files(kept) and not _share_storage(folder, kept)
    except (CacheError, OSError):
        return False


def _share_storage(folder: Path, other: Path) -> bool:
    """Return whether two caches share a folder, under another name or mount point."""
    return not _identities(folder).isdisjoint(_identities(other))


def _identities(folder: Path) -> set[tuple[int, int]]:
    paths = (folder, *(Path(top, name) for top, names, _ in os.walk(folder) for name in names))
    return {(status.st_dev, status.st_ino) for status in (place.stat() for place in paths)}
