"""The documents beside the features, checked: manifest or plan, provenance, request and the card for people."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from featcache.store.checking.damage import Damage, FileLocation, FileRole, reason
from featcache.store.errors import CacheError, CacheNotFoundError
from featcache.store.files import MAX_DOCUMENT_BYTES, read_sealed, sealed_bytes
from featcache.store.journal import JOURNAL, PLAN_FILE
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.partial_copy import ORIGIN_FILE, read_partial_manifest
from featcache.store.provenance import CARD_DIGEST, PROVENANCE_FILE
from featcache.store.reading.reader import read_partial
from featcache.store.regular_files import has_content, irregularity, sha256_regular
from featcache.store.requests import REQUEST_FILE
from featcache.store.shared_card import CARD_FILE
from featcache.store.spec import KEY_DIGITS
from featcache.store.zarr_metadata import recorded_paths

_KINDS = {
    MANIFEST_FILE: FileRole.MANIFEST,
    PROVENANCE_FILE: FileRole.DOCUMENT,
    CARD_FILE: FileRole.DOCUMENT,
    REQUEST_FILE: FileRole.REQUEST,
    ORIGIN_FILE: FileRole.REQUEST,
}


def documents(directory: Path, complete: bool) -> list[str]:
    """Return the documents that are there; an unfinished cache has none that would be final."""
    return [name for name in _KINDS if complete and irregularity(directory / name) is None]


def read_inventory(directory: Path) -> tuple[bool, Manifest | None, list[Damage]]:
    """Return whether the cache is complete, its manifest (None if damaged), and the damages of the documents read.

    Raises:
        CacheNotFoundError: there is no cache.
    """
    complete = os.path.lexists(directory / MANIFEST_FILE)  # also where it is a link to nowhere
    name = MANIFEST_FILE if complete else f"{JOURNAL}/{PLAN_FILE}"
    try:
        manifest = read_partial_manifest(directory) if complete else read_partial(directory)
        if complete:
            _check_metadata_table(manifest)
    except CacheNotFoundError:
        raise
    except (CacheError, OSError) as error:
        return (
            complete,
            None,
            [Damage(FileLocation(name, FileRole.MANIFEST), reason(directory / name, error))],
        )
    return complete, manifest, []


def document_damages(directory: Path) -> Iterator[Damage]:
    """Yield the damages of the documents of a complete cache, except a manifest that cannot be read at all."""
    for name, kind in _KINDS.items():
        path = directory / name
        mismatch = irregularity(path)
        if mismatch:
            # A cache may lack the shortcut, and `read_inventory` has spoken about the manifest.
            if name != MANIFEST_FILE and (kind != FileRole.REQUEST or os.path.lexists(path)):
                yield Damage(FileLocation(name, kind), mismatch)
            continue
        try:
            holds = _card_matches(directory) if name == CARD_FILE else _has_canonical_bytes(path)
        except (CacheError, OSError) as error:
            if name != MANIFEST_FILE:  # `read_inventory` has said it
                yield Damage(FileLocation(name, kind), reason(path, error))
            continue
        if not holds and name == CARD_FILE:
            yield Damage(FileLocation(name, kind), "content does not match its SHA-256")
        elif not holds:
            yield Damage(
                FileLocation(name, FileRole.FORM), "the content holds, but its bytes are not as written"
            )


def name_damages(directory: Path, manifest: Manifest) -> Iterator[Damage]:
    """Yield the damage of a folder named for another key: look-up goes by the name, so it would answer for another cache."""
    folder = directory.resolve().name
    named = re.fullmatch(rf".+-([0-9a-f]{{{KEY_DIGITS}}})", folder)
    if named and named[1] != manifest.spec.key:
        reason = f"the cache has the key {manifest.spec.key}; rename the folder"
        yield Damage(FileLocation(folder, FileRole.UNEXPECTED), reason)


def _has_canonical_bytes(path: Path) -> bool:
    """Return whether a sealed document, whose content holds, also has the bytes that we write."""
    return has_content(path, sealed_bytes(read_sealed(path)))


def _card_matches(directory: Path) -> bool:
    try:
        digest = read_sealed(directory / PROVENANCE_FILE).get(CARD_DIGEST)
    except (CacheError, OSError):
        return True  # nothing vouches for the card; provenance.json is reported itself
    size = (directory / CARD_FILE).stat().st_size
    if size > MAX_DOCUMENT_BYTES:  # hashing it might take for ever
        raise CacheError(f"{size} bytes is more than a card may have ({MAX_DOCUMENT_BYTES})")
    return digest is None or digest == sha256_regular(directory / CARD_FILE)


def _check_metadata_table(manifest: Manifest) -> None:
    # Its paths are going to be opened, so they must be the ones that the inventory calls for.
    odd = sorted(set(recorded_paths(manifest.full_inventory)) ^ set(manifest.metadata))
    if odd:
        raise CacheError(f"field 'metadata' does not fit the inventory at {odd[0]!r}")
