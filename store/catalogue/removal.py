"""Removing caches: what goes is renamed first, so that a kill leaves either the whole cache or nothing that counts.

A folder under a name with a leading dot is never a cache; `find_stale_files` finds the remains of a killed removal. Only the files
of the cache are removed; other files in its folder stay in place.
"""

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from featcache.store import journal
from featcache.store.catalogue.ownership import foreign_files, read_proof
from featcache.store.checking.addition import unfinished_addition
from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.files import sync_directory, try_lock
from featcache.store.inventory import Inventory
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.reading.reader import open_cache
from featcache.store.text import printable
from featcache.store.writing.claim_files import live_claims
from featcache.store.writing.claims import sole_owner

REMOVING_PREFIX = ".removing-"
CATALOGUE = "_catalogue"
"""Folder of a root that others push to; no dataset's folder can have this name."""
_SHOWN_BY = (journal.JOURNAL, MANIFEST_FILE)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def live_writers(directory: Path) -> list[str]:
    """Return the names of the claims that live processes hold in the cache at `directory`; nothing is changed."""
    return live_claims(directory / journal.JOURNAL)


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
        _refuse_foreign_files(directory, error)
    busy = live_writers(directory)
    if busy:
        raise CacheBusyError(
            f"{directory}: another process is writing this cache ({', '.join(busy[:3])}); wait for it or stop it"
        )


def refuse_linked(directory: Path) -> None:
    """Refuse to remove through a link, since its target lies elsewhere and may be somebody else's.

    Raises:
        CacheError: the folder of a cache, or that of its dataset, is a link.
    """
    for folder in (directory, directory.absolute().parent):
        if folder.is_symlink():
            raise CacheError(
                f"{folder} is a link to {folder.resolve()}; name that folder, or remove the link yourself"
            )


def foreign_files_message(directory: Path, left: Sequence[Path]) -> str:
    """Report the files of others that stay where a cache was removed."""
    names = [printable(str(path.relative_to(directory))) for path in left]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    return f"{directory} stays: it holds what is not featcache's ({listed})"


def remove_cache(directory: Path) -> list[Path]:
    """Remove a cache. Links inside it are removed, not what they point to.

    Returns:
        Files and folders in it that are not featcache's; they stay in place.

    Raises:
        CacheError: the path is a link, is not a cache, or may not be written.
        CacheBusyError: a process is writing the cache, or reading it as a borrowed copy.
    """
    check_removable(directory)
    inventory = read_proof(directory).inventory
    left = foreign_files(directory, inventory)
    try:
        _require_writable(directory)
        folder = directory / journal.JOURNAL
        # A complete cache without a journal has no writer.
        with _reserved(directory), sole_owner(folder) if folder.is_dir() else nullcontext():
            aside = directory.with_name(f"{REMOVING_PREFIX}{directory.name}.{secrets.token_hex(4)}")
            if left:
                _move_own_files(directory, aside, left)
            else:
                directory.rename(aside)
            sync_directory(aside.parent)
            _remove_from_catalogue(directory)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        raise CacheError(
            f"{directory} cannot be removed ({error.strerror}); its folder is read-only for you, ask its owner"
        ) from None
    remove_files(aside, inventory)
    return left


def _move_own_files(directory: Path, aside: Path, left: Sequence[Path]) -> None:
    """Move everything of ours out of a folder in which other files stay; only names change, so a kill rarely strikes in between.

    Manifest and journal are moved first, so that nobody takes the rest for a cache.
    """
    around = {*left, *(parent for path in left for parent in path.parents)}

    def move(path: Path, target: Path) -> None:
        if path not in around:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        elif path not in left:
            for name in sorted(os.listdir(path), key=lambda name: (name not in _SHOWN_BY, name)):
                move(path / name, target / name)

    aside.mkdir()
    move(directory, aside)


def remove_files(directory: Path, inventory: Inventory | None) -> list[Path]:
    """Delete the files of a cache, and its folder if nothing else is left; another process may be doing the same.

    Manifest and journal, which identify the folder, go last, so that `find_stale_files` still recognizes it.

    Args:
        directory: the folder, already set aside.
        inventory: inventory of the cache; None if it is not known.

    Returns:
        Files and folders that are not ours, and stay.
    """
    left = foreign_files(directory, inventory)
    around = {*left, *(parent for path in left for parent in path.parents)}
    for name in sorted(os.listdir(directory), key=lambda name: (name in _SHOWN_BY, name)):
        _remove_own(directory / name, set(left), around)
    with suppress(OSError):
        directory.rmdir()
    return left


def _remove_own(path: Path, left: set[Path], around: set[Path]) -> None:
    if path not in around:
        remove_tree(path)
    elif path not in left:
        for name in sorted(os.listdir(path)):
            _remove_own(path / name, left, around)


@contextmanager
def _reserved(directory: Path) -> Iterator[None]:
    """Keep others from using a borrowed copy during its removal; every user holds a shared lock on its folder.

    Raises:
        CacheBusyError: a process is using the copy.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        if try_lock(descriptor) is False:
            raise CacheBusyError(
                f"{directory}: another process is using this borrowed copy; wait for it or stop it"
            )
        yield
    finally:
        os.close(descriptor)


def _require_writable(directory: Path) -> None:
    """Refuse a cache with a folder that may not be written, since half of the cache would stay.

    Raises:
        CacheError: a folder may not be written.
    """
    for folder in (directory, *(Path(top, name) for top, names, _ in os.walk(directory) for name in names)):
        if not folder.is_symlink() and not os.access(folder, os.W_OK | os.X_OK):
            raise CacheError(f"{directory} cannot be removed: you may not write in {folder}; ask its owner")


def _remove_from_catalogue(directory: Path) -> None:
    """Take a cache out of the catalogue of a shared folder; see `featcache.store.transfer.catalogue`."""
    entries = directory.parent.parent / CATALOGUE
    if entries.is_dir() and not entries.is_symlink():
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
                journal.clear(folder)


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


def _refuse_foreign_files(directory: Path, reason: CacheError) -> None:
    names = os.listdir(directory) if directory.is_dir() else []
    foreign = [str(path.relative_to(directory)) for path in foreign_files(directory, None)]
    if foreign or not {journal.FEATURES, journal.JOURNAL}.intersection(names):
        listed = f" (it holds {', '.join(map(printable, foreign[:3]))})" if foreign else ""
        raise CacheError(f"{directory} is not a cache{listed}, so it is not removed: {reason}") from None
