"""`featcache pull`, as a function: fetch a cache, or the part of it that is wanted, and nothing that is here already.

Data first: a file gets its name when its digest is seen to be right. Then what is held is recorded, and the manifest is
written last. An interruption at any point leaves the local cache as it was, and the next pull resumes.
"""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featcache.store.address import Address, CacheName
from featcache.store.catalogue import find_key
from featcache.store.catalogue.entries import COMPLETE_RANK
from featcache.store.checking.digests import sha256_files
from featcache.store.checking.documents import document_damages
from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.files import JsonObject, sync_directory
from featcache.store.inventory import Inventory
from featcache.store.journal import FEATURES, JOURNAL, PLAN_FILE, clear
from featcache.store.machine import usable_cpus
from featcache.store.manifest import MANIFEST_FILE, FileRecord, Manifest
from featcache.store.network.concurrency import (
    CONCURRENT_FILES,
    ByteCounter,
    run_concurrently,
    transfer_with_progress,
)
from featcache.store.partial_copy import HELD_FILE, PartialCopy, forget_copy, read_origin, write_origin
from featcache.store.progress import Reporter, Silent
from featcache.store.regular_files import refuse_link, sha256_regular
from featcache.store.shared_card import card_origin
from featcache.store.transfer.catalogue import find_cache, not_found
from featcache.store.transfer.documents import fetch_documents, merged_metadata
from featcache.store.transfer.manifests import RemoteManifest, fetch_manifest, merge_manifests
from featcache.store.transfer.receive import RECEIVING, receive_bytes, receive_file
from featcache.store.transfer.remotes.base import Remote
from featcache.store.transfer.selection import CacheSelection, data_files
from featcache.store.transfer.space import require_room
from featcache.store.writing.claims import sole_owner
from featcache.store.writing.metadata import write_metadata


@dataclass(frozen=True)
class PullResult:
    """Result of a pull."""

    path: Path
    key: str
    origin: str
    num_bytes: int
    """Bytes that moved; 0 if everything was here."""
    files: int
    whole: bool
    """Whether the copy holds all of the cache."""
    seconds: float

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values."""
        return {
            "path": str(self.path),
            "key": self.key,
            "origin": self.origin,
            "bytes": self.num_bytes,
            "files": self.files,
            "whole": self.whole,
            "seconds": round(self.seconds, 3),
        }


def pull(
    address: Address,
    search: Sequence[Path],
    choice: CacheSelection | None = None,
    *,
    check: bool = False,
    reporter: Reporter | None = None,
) -> PullResult:
    """Fetch a cache into the first root, or what is wanted of it; to a copy that is there goes what it lacks.

    Args:
        address: ``REMOTE/DATASET/MODEL-KEY``, or ``REMOTE/`` and the beginning of the key.
        search: roots; where one has the cache already, it is completed there.
        choice: what is wanted; everything if not given.
        check: hold what is here already to its digests, and fetch again what is damaged.
        reporter: is told the bytes that move.

    Raises:
        CacheNotFoundError: the remote has no such cache; the message lists what there is.
        RequestError: the address or the choice is wrong.
        RemoteError: the remote cannot be reached, refuses, or breaks off for too long.
        CacheError: what the remote sends is not what it should be; it is named, and nothing of it was kept.
        CacheBusyError: another process is at work on the cache.
    """
    remote, name = find_cache(address)
    with remote:
        theirs = fetch_manifest(remote, name)
        if theirs is None:
            raise not_found(remote, name)
        part = (choice or CacheSelection()).of(
            theirs.manifest.inventory, theirs.manifest.spec.backbone.num_layers
        )
        return fetch_part(
            remote, name, theirs, part, copy_directory(search, name), check=check, reporter=reporter
        )


def copy_directory(search: Sequence[Path], name: CacheName) -> Path:
    """Return the folder where a cache is or would be put: an entry of the same key counts, whatever its name here."""
    entry = find_key(search, name.key)
    # Another root is somebody else's to write in: a part that it holds stays one.
    if entry is not None and (entry.rank == COMPLETE_RANK or (entry.complete and entry.root == search[0])):
        return entry.path
    return search[0] / name.dataset / name.folder


def fetch_part(
    remote: Remote,
    name: CacheName,
    theirs: RemoteManifest,
    part: Inventory,
    directory: Path,
    *,
    check: bool = False,
    borrowed: bool = False,
    reporter: Reporter | None = None,
) -> PullResult:
    """Fetch what `directory` lacks of `part`; see `pull`.

    Args:
        remote: where the cache is.
        name: its name there.
        theirs: its manifest there.
        part: the part that is wanted.
        directory: where it goes.
        check: as for `pull`.
        borrowed: mark a new copy as one that may go when others need the room.
        reporter: as for `pull`.
    """
    started = time.perf_counter()
    copy = _Copy(directory, remote.where(str(name)), theirs, part, borrowed, check)
    files = {} if copy.settled and not check else copy.missing_files(check)
    moved = 0
    if check or files or not copy.settled:
        with _writing(directory):
            require_room(directory, files)
            copy.begin()
            moved = _receive(remote, name, directory, files, reporter or Silent())
            moved += copy.finish(remote, name, check)
    seconds = time.perf_counter() - started
    return PullResult(directory, name.key, copy.origin, moved, len(files), copy.whole, seconds)


def discard_unfinished(directory: Path) -> None:
    """Remove the partial files of an abandoned pull, before an extraction fills the folder.

    Complete files stay; the extraction overwrites them. Valid copies are not touched, and nothing is removed while another
    process is writing in the folder.
    """
    if (
        not directory.is_dir()
        or (directory / MANIFEST_FILE).exists()
        or (directory / JOURNAL / PLAN_FILE).exists()
    ):
        return
    with suppress(CacheError, CacheBusyError, OSError), _writing(directory):
        inside = directory.resolve()
        for path in (directory / FEATURES).glob(f"*/*/*{RECEIVING}"):
            if path.parent.resolve().is_relative_to(inside):  # not behind a link
                path.unlink(missing_ok=True)
        forget_copy(directory)


class _Copy:
    """The local copy as it is, and as it is going to be."""

    def __init__(
        self,
        directory: Path,
        origin: str,
        theirs: RemoteManifest,
        part: Inventory,
        borrowed: bool,
        check: bool,
    ) -> None:
        self.directory, self.origin, self._theirs, self._part = directory, origin, theirs, part
        self._ours, self._held = _recorded(directory, check)
        if self._ours is None:
            self.manifest, self._have, target = theirs.manifest, None, part
        else:
            copies = f"{directory} and {origin}"
            self.manifest = merge_manifests(self._ours, theirs.manifest, copies)
            self._have = (
                self._ours.part(self._held.inventory).inventory if self._held else self._ours.inventory
            )
            target = self._have.plus(part)
        self.whole = target == self.manifest.inventory
        # What somebody pulled stays theirs, and what is pulled after it was borrowed becomes so.
        borrowed = borrowed and (self._ours is None or (self._held is not None and self._held.borrowed))
        recorded = PartialCopy(target, origin, theirs.version, borrowed)
        self._recorded = recorded if borrowed or not self.whole else None

    @property
    def settled(self) -> bool:
        """Whether there is nothing to fetch and nothing to record."""
        same = self._ours is not None and self.manifest == self._ours
        return (
            same and self._recorded == self._held and self._have is not None and self._have.covers(self._part)
        )

    def missing_files(self, check: bool) -> dict[str, FileRecord]:
        """Return the data files to fetch, by path within the cache.

        What is held is believed, unless `check`. Other files that are there were left by an interrupted pull, perhaps of
        other values, so they are held to their digests.
        """
        theirs = self._theirs.manifest
        if self._have is None:
            needed = self._part
        elif check:
            needed = self._have.plus(self._part).common(theirs.inventory)
        else:
            needed = self._part.minus(self._have)
        files = data_files(theirs, needed)
        there = [path for path, record in files.items() if not record.mismatch(self.directory / path)]
        digests = sha256_files([self.directory / path for path in there], usable_cpus())
        for path, digest in zip(there, digests, strict=True):
            if digest == files[path].sha256:
                del files[path]
        return files

    def begin(self) -> None:
        """Record the origin of a new copy before any data, so that the remains of an interruption are recognized as ours."""
        if self._ours is None:
            write_origin(self.directory, self.origin)

    def finish(self, remote: Remote, name: CacheName, check: bool) -> int:
        """Fetch what goes with the data, record what is held, and let it count; returns the bytes that moved."""
        pulled = (
            self._ours is None or (read_origin(self.directory) or card_origin(self.directory)) is not None
        )
        features = self.directory / FEATURES
        metadata, manifest = merged_metadata(self.manifest, self._ours, self._theirs.manifest)
        lacking = {
            path: record
            for path, record in manifest.metadata.items()
            if path not in metadata and _mismatch(features / path, record)
        }
        fetched: dict[str, bytes] = {}

        def receive(path: str, record: FileRecord) -> None:
            fetched[path] = receive_bytes(remote, f"{name}/{FEATURES}/{path}", record)

        run_concurrently(
            [partial(receive, path, record) for path, record in lacking.items()], CONCURRENT_FILES
        )
        moved = sum(map(len, fetched.values()))
        same = manifest == self._theirs.manifest
        if same and (manifest != self._ours or (check and any(document_damages(self.directory)))):
            moved += fetch_documents(remote, name, self.directory)
        documents = {**metadata, **fetched}
        for path in documents:
            _make_folders(self.directory, f"{FEATURES}/{path}")
        write_metadata(features, documents, sorted(documents))
        if self._recorded is not None:
            self._recorded.write(self.directory)
        if pulled:
            write_origin(self.directory, self.origin)
        if manifest != self._ours:
            manifest.write(self.directory)
        if self._recorded is None:
            (self.directory / HELD_FILE).unlink(missing_ok=True)
        sync_directory(self.directory)
        sync_directory(self.directory.parent)
        return moved


def _recorded(directory: Path, check: bool) -> tuple[Manifest | None, PartialCopy | None]:
    """Return the manifest of the local copy, and the part that it holds; with `check`, damaged documents count as missing.

    Raises:
        CacheError: a document is damaged.
    """
    try:
        held = PartialCopy.read(directory)
        return Manifest.read(directory), held
    except FileNotFoundError:
        return None, None
    except CacheError:
        if not check:
            raise
        return None, None


def _mismatch(path: Path, record: FileRecord) -> bool:
    return bool(record.mismatch(path)) or sha256_regular(path) != record.sha256


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Keep other writers out of a folder; what marks the work is gone when it has ended, well or not."""
    journal = directory / JOURNAL
    refuse_link(journal)
    journal.mkdir(parents=True, exist_ok=True)
    with sole_owner(journal):
        if (journal / PLAN_FILE).exists():
            raise CacheError(
                f"{directory} is being extracted, or was interrupted while it was: finish that, or remove it with "
                f"`{shlex.join(['featcache', 'rm', str(directory)])}`, or pull under another --root"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                clear(journal)


def _receive(
    remote: Remote, name: CacheName, directory: Path, files: Mapping[str, FileRecord], reporter: Reporter
) -> int:
    if not files:
        return 0
    folders = {_make_folders(directory, path) for path in files}

    def work(count: ByteCounter) -> None:
        run_concurrently(
            [
                partial(receive_file, remote, f"{name}/{path}", record, directory / path, count)
                for path, record in files.items()
            ],
            CONCURRENT_FILES,
        )

    moved = transfer_with_progress(reporter, "pulling", sum(record.bytes for record in files.values()), work)
    for folder in sorted(folders):
        sync_directory(folder)
    return moved


def _make_folders(directory: Path, path: str) -> Path:
    """Make the folders of a file within a cache; none of them may be a link, which would lead out of it."""
    folder = directory
    for part in path.split("/")[:-1]:
        folder = folder / part
        refuse_link(folder)
        folder.mkdir(exist_ok=True)
    return folder
