"""Straight from the remote: what is needed is fetched into the local root, and may go again when others need the room.

A borrowed copy is an ordinary partial one with a mark. Whoever uses it holds a shared lock on its folder, so it is
never evicted underneath; the kernel drops the lock with the process.
"""

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.store.address import Address, CacheName
from featcache.store.catalogue.entries import folders
from featcache.store.catalogue.removal import remove_cache
from featcache.store.errors import CacheError, FeatcacheError, RemoteError, RequestError
from featcache.store.files import try_lock
from featcache.store.inventory import Inventory
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.partial_copy import HELD_FILE, PartialCopy, read_partial_manifest, update_access_time
from featcache.store.progress import Reporter, Silent
from featcache.store.text import parse_size
from featcache.store.transfer.catalogue import find_cache, not_found
from featcache.store.transfer.manifests import RemoteManifest, fetch_manifest, merge_manifests
from featcache.store.transfer.pull import PullResult, copy_directory, fetch_part
from featcache.store.transfer.remotes.base import Remote

LIMIT_VARIABLE = "FEATCACHE_BORROWED"
DEFAULT_LIMIT = 50 * 10**9
IDLE_S = 86_400.0
"""Seconds that a borrowed copy stays after its last use, on file systems without locks to show that it is in use."""

Needed = Callable[[Manifest], Inventory]
"""Says which part of a cache is needed, given the manifest of the whole."""

_leases: dict[Path, int] = {}


def borrow(
    address: Address, search: Sequence[Path], needed: Needed, *, reporter: Reporter | None = None
) -> Path:
    """Make sure that what is needed of a remote cache is in a local root; returns the folder.

    A copy that has everything costs one small request, which asks whether the remote still has the same; without a
    network it is used as it is.

    Args:
        address: of the cache.
        search: roots; the first takes what is fetched.
        needed: the part that is needed.
        reporter: receives messages and progress.

    Raises:
        RequestError: it is more than may be borrowed; pull it.
        Exception: as for `pull`, and what `needed` raises.
    """
    reporter = reporter or Silent()
    remote, name = find_cache(address)
    with remote:
        directory = copy_directory(search, name)
        if _is_fresh(remote, name, directory, needed, reporter):
            _lock_copy(directory)
            update_access_time(directory)
            return directory
        theirs = fetch_manifest(remote, name)
        if theirs is None:
            raise not_found(remote, name)
        part = needed(theirs.manifest)
        done = _fetch(remote, name, theirs, part, directory, search[0], reporter)
        update_access_time(directory)
        reporter.message(
            f"borrowed from {remote.where(str(name))}: {done.num_bytes / 1e6:,.1f} MB in {done.seconds:.1f} s"
        )
        return directory


def borrow_limit() -> int:
    """Return the bytes that borrowed copies may take under a root.

    Raises:
        RequestError: the environment's value is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    size = parse_size(text) if text else DEFAULT_LIMIT
    if size is None:
        raise RequestError(f"{LIMIT_VARIABLE} is {text!r}, which is no size; write such as 50GB")
    return size


def _fetch(
    remote: Remote,
    name: CacheName,
    theirs: RemoteManifest,
    part: Inventory,
    directory: Path,
    root: Path,
    reporter: Reporter,
) -> PullResult:
    held = _read_partial(directory)
    if held is None or held.borrowed:
        make_room(root, part, directory)
    directory.mkdir(parents=True, exist_ok=True)
    _lock_copy(directory)
    try:
        return fetch_part(remote, name, theirs, part, directory, borrowed=True, reporter=reporter)
    except CacheError:
        # The remote's copy was replaced by one with other values; a borrowed copy of the old one is of no use.
        ours = _read_manifest(directory)
        if held is None or not held.borrowed or ours is None or _agree(ours, theirs.manifest):
            raise
    reporter.message(f"{remote.where(str(name))} has changed; the copy here is fetched anew")
    unlock_copy(directory)
    remove_cache(directory)
    directory.mkdir(parents=True, exist_ok=True)  # files that are not ours stay in it
    _lock_copy(directory)
    return fetch_part(remote, name, theirs, part, directory, borrowed=True, reporter=reporter)


def _is_fresh(remote: Remote, name: CacheName, directory: Path, needed: Needed, reporter: Reporter) -> bool:
    """Return whether the copy here has what is needed, and the remote has nothing newer."""
    ours = _read_manifest(directory)
    if ours is None:
        return False
    held = read_partial_manifest(directory).inventory
    part = needed(replace(ours, whole=None))
    if not held.covers(part):
        return False
    record = _read_partial(directory)
    if record is None:
        return True  # pulled in full: it is what somebody chose to have
    try:
        # Asked once: whoever has no network should not wait for the retries of a transfer.
        return remote.stat(f"{name}/{MANIFEST_FILE}").version == record.version
    except RemoteError as error:
        reporter.message(
            f"could not ask whether {remote.where(str(name))} has changed ({error}); using the copy here"
        )
        return True


def make_room(root: Path, part: Inventory, keep: Path) -> None:
    """Evict borrowed copies, those that were not used for the longest time first, until `part` fits the limit.

    Raises:
        RequestError: it does not fit at all.
    """
    allowed = borrow_limit()
    if part.num_bytes > allowed:
        raise RequestError(
            f"{part.num_bytes / 1e9:,.2f} GB are needed, more than borrowed caches may take ({allowed / 1e9:,.2f} GB): "
            f"ask for fewer layers, set {LIMIT_VARIABLE}, or fetch it to stay with `featcache pull`"
        )
    copies = sorted((c for c in borrowed_copies(root) if c.directory != keep), key=lambda copy: copy.used)
    taken = part.num_bytes + sum(copy.num_bytes for copy in copies)
    for copy in copies:
        if taken <= allowed:
            return
        if _evict(copy):
            taken -= copy.num_bytes


@dataclass(frozen=True)
class BorrowedCopy:
    """A borrowed copy."""

    directory: Path
    num_bytes: int
    used: float
    """Seconds since the epoch when it was used last."""


def borrowed_copies(root: Path) -> list[BorrowedCopy]:
    """Return the borrowed copies under a root."""
    copies = []
    for folder, _ in folders(root):
        held = _read_partial(folder)
        if held is not None and held.borrowed:
            with suppress(OSError):  # another process is evicting it
                used = (folder / HELD_FILE).stat().st_mtime
                copies.append(BorrowedCopy(folder, held.inventory.num_bytes, used))
    return copies


def _evict(copy: BorrowedCopy) -> bool:
    """Remove a copy that nobody uses; on file systems without locks, one that was not requested for `IDLE_S`."""
    try:
        if not _has_locks(copy.directory) and time.time() - copy.used < IDLE_S:
            return False
        remove_cache(copy.directory)  # refuses while a process holds a lock
    except (FeatcacheError, OSError):
        return False
    return True


def _has_locks(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        return try_lock(descriptor) is not None
    finally:
        os.close(descriptor)


def _lock_copy(directory: Path) -> None:
    """Keep a copy from being evicted as long as this process lives."""
    if directory not in _leases:
        descriptor = os.open(directory, os.O_RDONLY)
        with suppress(OSError):  # without locks, or just being evicted: then what is missing shows at once
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _leases[directory] = descriptor


def unlock_copy(directory: Path) -> None:
    """Let a copy be evicted again."""
    descriptor = _leases.pop(directory, None)
    if descriptor is not None:
        os.close(descriptor)


def _read_manifest(directory: Path) -> Manifest | None:
    try:
        return Manifest.read(directory)
    except FileNotFoundError:
        return None


def _read_partial(directory: Path) -> PartialCopy | None:
    try:
        return PartialCopy.read(directory)
    except (CacheError, OSError):
        return None


def _agree(ours: Manifest, theirs: Manifest) -> bool:
    try:
        merge_manifests(ours, theirs, "the copies")
    except CacheError:
        return False
    return True
