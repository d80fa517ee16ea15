"""The manifest of a cache on a remote: all that is believed of it, once it is seen to make sense."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from featcache.store.address import CacheName
from featcache.store.errors import CacheError, MissingError
from featcache.store.files import MAX_DOCUMENT_BYTES, JsonObject, parse_json, unseal
from featcache.store.manifest import MANIFEST_FILE, Manifest, manifest_digest
from featcache.store.network.concurrency import retry
from featcache.store.transfer.receive import receive_document, retry_once
from featcache.store.transfer.remotes.base import Remote
from featcache.store.zarr_metadata import chunks_beside_splits, recorded_paths

MAX_FETCHED_METADATA = 2**28


@dataclass(frozen=True)
class RemoteManifest:
    """Manifest of a cache on a remote."""

    manifest: Manifest
    version: str
    """The remote's own word for the version of the file."""

    @property
    def digest(self) -> str:
        """`manifest_digest`."""
        return manifest_digest(self.manifest)


def fetch_manifest(remote: Remote, name: CacheName) -> RemoteManifest | None:
    """Fetch the manifest of a cache; None if the remote does not have it.

    Raises:
        CacheError: it is damaged, is that of another cache, or names files that cannot be.
        RemoteError: the remote cannot be reached or refuses.
    """
    path = f"{name}/{MANIFEST_FILE}"
    where = remote.where(path)
    try:
        version = retry(lambda: remote.stat(path)).version
        document = retry_once(lambda: _receive_sealed(remote, path))
    except MissingError:
        return None
    manifest = Manifest.from_dict(document, where)
    if manifest.spec.key != name.key:
        raise CacheError(
            f"{where}: it is of the cache {manifest.spec.key}, not of {name.key}; nothing was taken from it"
        )
    _check_files(manifest, where)
    return RemoteManifest(manifest, version)


def fetch_sealed(remote: Remote, path: str) -> JsonObject | None:
    """Fetch a sealed document such as provenance.json; None if the remote does not have it.

    Raises:
        CacheError: it is damaged.
        RemoteError: the remote cannot be reached or refuses.
    """
    try:
        return retry_once(lambda: _receive_sealed(remote, path))
    except MissingError:
        return None


def _receive_sealed(remote: Remote, path: str) -> JsonObject:
    data, where = receive_document(remote, path, MAX_DOCUMENT_BYTES), remote.where(path)
    return unseal(parse_json(data, where), where)


def _check_files(manifest: Manifest, where: str) -> None:
    """Hold the table of metadata files to the inventory, as that of the chunks is; refuse sizes that cannot be."""
    odd = sorted(set(recorded_paths(manifest.inventory)) ^ set(manifest.metadata))
    if odd:
        raise CacheError(f"{where}: field 'metadata' does not fit the inventory at {odd[0]!r}")
    chunks = chunks_beside_splits(manifest.inventory)
    for path, record in manifest.metadata.items():
        expected = chunks[path].chunk_bytes if path in chunks else None
        if not 0 < record.bytes <= MAX_DOCUMENT_BYTES and expected is None:
            raise CacheError(f"{where}: file {path!r} is recorded with {record.bytes} bytes, which cannot be")
        if expected is not None and record.bytes != expected:
            raise CacheError(
                f"{where}: file {path!r} is recorded with {record.bytes} bytes, must be {expected}"
            )
    if sum(record.bytes for record in manifest.metadata.values()) > 2 * MAX_FETCHED_METADATA:
        raise CacheError(f"{where}: more than {2 * MAX_FETCHED_METADATA} bytes of metadata, which cannot be")
    for names in (manifest.inventory.splits, *(s.arrays for s in manifest.inventory.splits.values())):
        _refuse_collisions(names, where)


def _refuse_collisions(names: Iterable[str], where: str) -> None:
    """Refuse names that differ only in case: on some disks, one file would overwrite the other."""
    twice = [name for name, times in Counter(name.lower() for name in names).items() if times > 1]
    if twice:
        raise CacheError(f"{where}: two names differ only in case ({twice[0]!r}); such a cache is not taken")


def merge_manifests(ours: Manifest, theirs: Manifest, copies: str) -> Manifest:
    """Return the manifest of all that either copy of a cache has.

    Args:
        ours: the whole manifest of one copy.
        theirs: that of another.
        copies: names the two copies in errors.

    Returns:
        `ours` or `theirs`, if it has everything; otherwise a new one, with Zarr metadata that still have to be written.

    Raises:
        CacheError: the copies hold different values under the same name.
    """
    known = {path: record for block in ours.blocks for path, record in block.files.items()}
    for block in theirs.blocks:
        for path, record in block.files.items():
            if known.get(path, record) != record:
                raise CacheError(
                    f"{copies} hold different values, first in {path}: they were made by two runs whose rounding differs; "
                    "keep one of them, or put the other under another root"
                )
    # Codes of one run mean other values under the scales of another.
    scales = chunks_beside_splits(ours.inventory).keys() & chunks_beside_splits(theirs.inventory).keys()
    for path in sorted(scales):
        if ours.metadata[path] != theirs.metadata[path]:
            raise CacheError(
                f"{copies} hold different values, first in {path}: two runs fitted them; keep one of the copies, or put the "
                "other under another root"
            )
    if (ours.batch_size, ours.inventory.class_names) != (theirs.batch_size, theirs.inventory.class_names):
        raise CacheError(f"{copies} differ in batch size or class names; keep one of them")
    if ours.inventory.covers(theirs.inventory):
        return ours
    if theirs.inventory.covers(ours.inventory):
        return theirs
    return ours.plus(theirs.inventory, theirs.blocks, {**theirs.metadata, **ours.metadata})
