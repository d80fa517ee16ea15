"""Removing caches: what goes is renamed first, so that a kill leaves either the whole cache or nothing that counts.

A folder under a name with a leading dot is never a cache; `leftovers` finds what a killed removal left.
"""

import errno
import glob
import os
import secrets
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

from featcache.store import journal
from featcache.store.checking.addition import unfinished_addition
from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.files import PARTIAL_SUFFIX, sync_directory
from featcache.store.held import HELD_FILE
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.reading.reader import open_cache
from featcache.store.requests import REQUEST_FILE
from featcache.store.writing.claims import STALE_S, SUFFIX, live_claims, sole_owner
from featcache.store.writing.writer import CARD_FILE, PROVENANCE_FILE

REMOVING_PREFIX = ".removing-"
CATALOGUE = "_catalogue"
"""Folder of a root that others push to; no dataset's folder can have this name."""
PARTS = (
    journal.FEATURES,
    journal.JOURNAL,
    MANIFEST_FILE,
    PROVENANCE_FILE,
    REQUEST_FILE,
    CARD_FILE,
    HELD_FILE,
)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def writers(directory: Path) -> list[str]:
    """Names of what live processes are writing in the cache at `directory`."""
    folder = directory / journal.JOURNAL
    claims = list(folder.glob(f"*{SUFFIX}"))
    try:
        return live_claims(folder) if claims else []
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        # Claims can only be tried where one may write; elsewhere their heartbeat tells.
        now = time.time()
        return [claim.name.removesuffix(SUFFIX) for claim in claims if now - claim.stat().st_mtime < STALE_S]


def check_removable(directory: Path) -> None:
    """Refuse what must not be removed.

    Raises:
        CacheError: it is a link, or not a cache.
        CacheBusyError: a process is writing it.
    """
    if directory.is_symlink():
        raise CacheError(
            f"{directory} is a link to {directory.resolve()}; name that folder, or remove the link yourself"
        )
    try:
        open_cache(directory, allow_partial=True)
    except CacheError as error:
        # A damaged cache may go too, if everything in the folder is what a cache consists of.
        _refuse_strangers(directory, error)
    busy = writers(directory)
    if busy:
        raise CacheBusyError(
            f"{directory}: another process is writing this cache ({', '.join(busy[:3])}); wait for it or stop it"
        )


def remove_cache(directory: Path) -> None:
    """Remove a cache. Links inside it are removed, not what they point to.

    Raises:
        CacheError: it is a link, not a cache, or lies where one may not write.
        CacheBusyError: a process is writing it.
    """
    check_removable(directory)
    try:
        folder = directory / journal.JOURNAL
        # A complete cache without a journal has no writer.
        with sole_owner(folder) if folder.is_dir() else nullcontext():
            aside = directory.with_name(f"{REMOVING_PREFIX}{directory.name}.{secrets.token_hex(4)}")
            directory.rename(aside)
            sync_directory(aside.parent)
            _forget(directory)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        raise CacheError(
            f"{directory} cannot be removed ({error.strerror}); its folder is read-only for you, ask its owner"
        ) from None
    remove_tree(aside)


def _forget(directory: Path) -> None:
    """Take a cache out of the catalogue of a shared folder; see `featcache.store.transfer.catalogue`."""
    entries = directory.parent.parent / CATALOGUE
    if entries.is_dir():
        for entry in entries.glob(f"{glob.escape(f'{directory.parent.name}@{directory.name}')}@*"):
            entry.unlink(missing_ok=True)


def remove_journal(directory: Path) -> None:
    """Remove what a run left that was killed after it had completed the cache; an unfinished addition stays.

    Raises:
        CacheBusyError: another process is at work on the cache.
        CacheError: the manifest is damaged.
    """
    folder = directory / journal.JOURNAL
    if folder.is_dir():
        with sole_owner(folder):
            if unfinished_addition(directory, Manifest.read(directory)) is None:
                remove_tree(folder)


def remove_tree(path: Path) -> None:
    """Delete a folder or file; another process may be doing the same."""
    for _ in range(10):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            continue  # the other was faster with a file inside


def _refuse_strangers(directory: Path, reason: CacheError) -> None:
    names = sorted(os.listdir(directory)) if directory.is_dir() else []
    strangers = [name for name in names if name.removesuffix(PARTIAL_SUFFIX) not in PARTS]
    if strangers or not {journal.FEATURES, journal.JOURNAL}.intersection(names):
        listed = f" (it holds {', '.join(strangers[:3])})" if strangers else ""
        raise CacheError(f"{directory} is not a cache{listed}, so it is not removed: {reason}") from None
