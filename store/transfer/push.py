"""`featcache push`, as a function: a whole cache to a remote, where it counts when the last file has arrived.

Data go first, then what describes them, the manifest last, and then the entry in the catalogue. A marker says whose
bytes a half-pushed folder holds, so that two people who push different runs of the same cache never mix them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featcache.store.address import Address, CacheName, split_cache_address
from featcache.store.errors import CacheBusyError, CacheError, RequestError
from featcache.store.files import JsonObject, read_sealed, sealed_bytes, sha256_hex
from featcache.store.journal import FEATURES
from featcache.store.manifest import MANIFEST_FILE, FileRecord, Manifest
from featcache.store.network.concurrency import retry, transfer_with_progress
from featcache.store.partial_copy import pull_command, require_complete_copy
from featcache.store.progress import Reporter, Silent
from featcache.store.provenance import CARD_DIGEST, PROVENANCE_FILE
from featcache.store.reading.reader import open_cache, require_files
from featcache.store.regular_files import read_regular
from featcache.store.requests import REQUEST_FILE, recorded_requests
from featcache.store.shared_card import CARD_FILE, MAX_CARD_BYTES
from featcache.store.spec import KEY_DIGITS
from featcache.store.transfer.card import cache_card, known_license
from featcache.store.transfer.catalogue import (
    Catalogue,
    CatalogueEntry,
    cache_files,
    is_marker,
    push_marker,
    read_catalogue,
    refuse_extraction,
)
from featcache.store.transfer.documents import fetch_requests, repository_card
from featcache.store.transfer.manifests import fetch_manifest, merge_manifests
from featcache.store.transfer.remotes import open_remote
from featcache.store.transfer.remotes.base import Remote, Upload
from featcache.store.transfer.selection import data_files


@dataclass(frozen=True)
class PushResult:
    """Result of a push."""

    address: str
    key: str
    num_bytes: int
    """Bytes of data that moved; 0 if they were there."""
    files: int
    there: bool
    """The remote held all of it already."""
    seconds: float

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values."""
        return {
            "address": self.address,
            "key": self.key,
            "bytes": self.num_bytes,
            "files": self.files,
            "already_there": self.there,
            "seconds": round(self.seconds, 3),
        }


def push(
    directory: Path, address: Address, *, force: bool = False, reporter: Reporter | None = None
) -> PushResult:
    """Copy a cache to a remote; what is there already does not move again.

    Args:
        directory: folder of the cache, whole and complete.
        address: of the remote; a cache lies at ``<dataset>/<model>-<key>`` below it.
        force: replace other values that the remote has under this key, or a push of other values that was interrupted.
        reporter: is told the bytes that move.

    Raises:
        IncompleteCacheError, PartialCacheError: the cache is not whole.
        CacheError: a local file is not what its digest says, or the remote holds other values; nothing there has changed.
        CacheBusyError: somebody else is pushing other values of this cache.
        RequestError: the remote is read-only.
        RemoteError: it cannot be reached, refuses, or breaks off for too long.
    """
    started = time.perf_counter()
    cache = open_cache(directory)
    require_complete_copy(directory, "pushed")
    require_files(cache)
    place, given = split_cache_address(address)
    name = _name(cache.directory.resolve(), cache.key)
    if given is not None and given != name:
        raise RequestError(f"{address} is the address of another cache; give that of the remote, {place}")
    with open_remote(place) as remote:
        if not remote.writable:
            raise RequestError(
                f"{remote.where()} is read-only; push to the folder, or the store, that it shows"
            )
        job = _Push(remote, name, cache.directory, cache.manifest, force, reporter or Silent())
        files, moved = job.run()
        seconds = time.perf_counter() - started
        return PushResult(remote.where(str(name)), cache.key, moved, files, job.there, seconds)


def _name(directory: Path, key: str) -> CacheName:
    name = CacheName.parse(directory.parent.name, directory.name)
    if name is None or name.key != key:
        raise RequestError(
            f"{directory} is not called DATASET/MODEL-KEY with the key {key} ({KEY_DIGITS} digits), as the folders of caches are; rename it"
        )
    return name


class _Push:
    """One push: what is to be sent, and how it comes to count."""

    def __init__(
        self,
        remote: Remote,
        name: CacheName,
        directory: Path,
        ours: Manifest,
        force: bool,
        reporter: Reporter,
    ) -> None:
        self._remote, self._name, self._directory, self._ours = remote, name, directory, ours
        self._force, self._reporter = force, reporter
        self._entry = CatalogueEntry.of(name, ours)
        self.there = False
        """Whether the remote held all of it already."""

    def run(self) -> tuple[int, int]:
        """Push; returns files and bytes of data that moved."""
        create = getattr(self._remote, "create", None)
        if create is not None:
            retry(create)
        theirs, catalogue = self._remote_manifest(), retry(lambda: read_catalogue(self._remote))
        if theirs is not None:
            merged = None if self._must_replace(theirs) else self._merged(theirs)
            if merged is None:
                self._clear(catalogue)
                theirs, catalogue = None, retry(lambda: read_catalogue(self._remote))
            elif merged == theirs:
                self.there = True
                self._update_catalogue(catalogue, CatalogueEntry.of(self._name, theirs))
                return 0, 0
        begun = self._mark_begun(catalogue, theirs)
        uploads = self._uploads(theirs, begun)
        moved = self._send(uploads)
        self._publish(theirs)
        self._update_catalogue(retry(lambda: read_catalogue(self._remote)), self._entry)
        return len(uploads), moved

    def _remote_manifest(self) -> Manifest | None:
        try:
            remote_manifest = fetch_manifest(self._remote, self._name)
        except CacheError as error:
            if self._force:
                return None
            raise CacheError(f"{error}; push with --force to replace it") from None
        return remote_manifest.manifest if remote_manifest else None

    def _must_replace(self, theirs: Manifest) -> bool:
        """Return whether `force` has to replace the remote's copy, since it holds other values."""
        if not self._force:
            return False
        try:
            merge_manifests(self._ours, theirs, "the copies")
        except CacheError:
            return True
        return False

    def _merged(self, theirs: Manifest) -> Manifest:
        where = self._remote.where(str(self._name))
        try:
            merged = merge_manifests(self._ours, theirs, f"{self._directory} and {where}")
        except CacheError as error:
            raise CacheError(f"{error}; push with --force to replace the one on the remote") from None
        if merged not in (self._ours, theirs):
            command = pull_command(self._directory, where)
            raise CacheError(
                f"{where} holds features that {self._directory} does not have; run `{command}` first, then push again"
            )
        return merged

    def _mark_begun(self, catalogue: Catalogue, theirs: Manifest | None) -> bool:
        """Say that this content is being pushed; True if an interrupted push of it had begun."""
        if self._remote.knows_digests:
            return True
        digest = self._entry.digest
        others = [d for name, d in catalogue.pushing if name == self._name and d != digest]
        mine = any(name == self._name and d == digest for name, d in catalogue.pushing)
        if others and self._force:
            self._clear(catalogue)
            others, mine = [], False
        if not mine:
            # Files that nothing vouches for: of a removal that was interrupted.
            if theirs is None and not others:
                self._clear_files()
            retry(lambda: self._remote.put_bytes(push_marker(self._name, digest), b""))
            again = retry(lambda: read_catalogue(self._remote))
            others = [d for name, d in again.pushing if name == self._name and d != digest]
        if others:
            if not mine:
                retry(lambda: self._remote.delete([push_marker(self._name, digest)]))
            raise CacheBusyError(
                f"{self._remote.where(str(self._name))}: somebody is pushing this cache with other values, or was interrupted; "
                "wait for them and pull it, or push with --force"
            )
        return mine

    def _uploads(self, theirs: Manifest | None, begun: bool) -> list[Upload]:
        """Return the data files that the remote lacks."""
        files = data_files(self._ours, self._ours.inventory)
        known = data_files(theirs, theirs.inventory) if theirs else {}
        there = cache_files(self._remote, self._name) if begun else {}
        uploads = [
            Upload(f"{self._name}/{path}", self._directory / path, record)
            for path, record in files.items()
            if path not in known
        ]
        existing = {f"{self._name}/{path}": listed for path, listed in there.items()}
        return [u for u in uploads if u.path not in existing or not self._remote.holds(existing[u.path], u)]

    def _send(self, uploads: list[Upload]) -> int:
        if not uploads:
            return 0
        total = sum(upload.record.bytes for upload in uploads)
        return transfer_with_progress(
            self._reporter, "pushing", total, lambda count: self._remote.put_all(uploads, count)
        )

    def _publish(self, theirs: Manifest | None) -> None:
        """Send what describes the data, the manifest last; on a remote with commits all in one."""
        documents = {}
        for path, record in self._ours.metadata.items():
            if theirs is None or theirs.metadata.get(path) != record:
                documents[f"{FEATURES}/{path}"] = self._read(f"{FEATURES}/{path}", record)
        try:
            provenance = read_sealed(self._directory / PROVENANCE_FILE)
        except FileNotFoundError:
            provenance = {}
        own = self._own_card(provenance)
        card = cache_card(own, self._ours, self._remote.where(str(self._name))).encode()
        documents[CARD_FILE] = card
        documents[PROVENANCE_FILE] = sealed_bytes({**provenance, CARD_DIGEST: sha256_hex(card)})
        requests = recorded_requests(self._directory)
        if theirs is not None:
            requests += [r for r in fetch_requests(self._remote, self._name) if r not in requests]
        if requests:
            documents[REQUEST_FILE] = sealed_bytes({"requests": requests})
        documents[MANIFEST_FILE] = sealed_bytes(self._ours.to_dict())
        named = {f"{self._name}/{path}": data for path, data in documents.items()}
        if self._remote.knows_digests:
            # All in one commit.
            named = {**self._dataset_card(known_license(own)), self._entry.path: b"", **named}
        retry(lambda: self._remote.publish(named, f"featcache push: {self._name}"))

    def _own_card(self, provenance: Mapping[str, object]) -> str:
        """Return the local card of the cache if it is as it was written, else an empty text."""
        path = self._directory / CARD_FILE
        try:
            card = read_regular(path, MAX_CARD_BYTES)
        except (FileNotFoundError, CacheError):
            return ""
        digest = provenance.get(CARD_DIGEST)
        return card.decode(errors="replace") if digest in (None, sha256_hex(card)) else ""

    def _dataset_card(self, license: str | None) -> dict[str, bytes]:
        """Return the card of the repository, unless somebody wrote their own."""
        others = [e for e in read_catalogue(self._remote).entries if e.name != self._name]
        entries = sorted([*others, self._entry], key=lambda entry: str(entry.name))
        # The licenses of other caches are in their own cards alone.
        return repository_card(self._remote, entries, None if others else license)

    def _read(self, path: str, record: FileRecord) -> bytes:
        data = read_regular(self._directory / path, record.bytes)
        if (len(data), sha256_hex(data)) != (record.bytes, record.sha256):
            raise CacheError(
                f"{self._directory / path}: content does not match its SHA-256, so it is not pushed; "
                "see what is wrong with `featcache verify`"
            )
        return data

    def _update_catalogue(self, catalogue: Catalogue, entry: CatalogueEntry) -> None:
        """Enter the cache into the catalogue, and take out what spoke of it before."""
        listed = catalogue.of(self._name)
        if listed is None or listed.path != entry.path:
            retry(lambda: self._remote.put_bytes(entry.path, b""))
        # Of markers only those of this content: others are somebody else's.
        mine = [push_marker(self._name, digest) for digest in (entry.digest, self._entry.digest)]
        old = [p for p in catalogue.paths(self._name) if p != entry.path and (not is_marker(p) or p in mine)]
        if old:
            retry(lambda: self._remote.delete(old))

    def _clear(self, catalogue: Catalogue) -> None:
        """Take what is there away, the manifest first, so that nobody reads a mixture."""
        refuse_extraction(self._remote, self._name, cache_files(self._remote, self._name))
        first = [f"{self._name}/{MANIFEST_FILE}", *catalogue.paths(self._name)]
        retry(lambda: self._remote.delete(first))
        self._clear_files()

    def _clear_files(self) -> None:
        files = cache_files(self._remote, self._name)
        refuse_extraction(self._remote, self._name, files)
        there = [f"{self._name}/{path}" for path in files]
        retry(lambda: self._remote.delete(there))
