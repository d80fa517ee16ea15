"""The small files that go with the data of a cache: Zarr metadata, provenance, card, remembered requests."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from featcache.store.address import CacheName
from featcache.store.errors import CacheError, MissingError
from featcache.store.files import JsonObject, sealed_bytes, sha256_hex, write_atomic, write_sealed
from featcache.store.manifest import Manifest
from featcache.store.provenance import CARD_DIGEST, PROVENANCE_FILE
from featcache.store.requests import REQUEST_FILE, record_request
from featcache.store.shared_card import CARD_FILE, MAX_CARD_BYTES
from featcache.store.transfer.card import MADE_BY_US, dataset_card
from featcache.store.transfer.catalogue import CatalogueEntry
from featcache.store.transfer.manifests import fetch_sealed
from featcache.store.transfer.receive import receive_document, retry_once
from featcache.store.transfer.remotes.base import Remote
from featcache.store.writing.metadata import metadata_records
from featcache.store.zarr_metadata import group_metadata_paths, metadata_documents


def fetch_documents(remote: Remote, name: CacheName, directory: Path) -> int:
    """Fetch provenance, card and remembered requests of a cache; returns the bytes that moved.

    Args:
        remote: where the cache is.
        name: its name there.
        directory: where they go.

    Raises:
        CacheError: one is damaged, or not what its digest says.
        RemoteError: the remote cannot be reached.
    """
    provenance = fetch_sealed(remote, f"{name}/{PROVENANCE_FILE}") or {}
    card = retry_once(lambda: _fetch_card(remote, f"{name}/{CARD_FILE}", provenance.get(CARD_DIGEST)))
    moved = len(sealed_bytes(provenance))
    write_atomic(directory / CARD_FILE, card)
    write_sealed(directory / PROVENANCE_FILE, provenance)
    for request in fetch_requests(remote, name):
        record_request(directory, request)
    return moved + len(card)


def _fetch_card(remote: Remote, path: str, digest: object) -> bytes:
    try:
        card = receive_document(remote, path, MAX_CARD_BYTES)
    except MissingError:
        card = b""
    if digest is not None and digest != sha256_hex(card):
        raise CacheError(f"{remote.where(path)}: content does not match its SHA-256")
    return card


def fetch_requests(remote: Remote, name: CacheName) -> list[JsonObject]:
    """Return the literal requests that a cache on a remote answers; none if they cannot be read, for they are a shortcut."""
    with suppress(CacheError):
        requests = (fetch_sealed(remote, f"{name}/{REQUEST_FILE}") or {}).get("requests")
        if isinstance(requests, list):
            return [request for request in requests if isinstance(request, dict)]
    return []


def repository_card(
    remote: Remote, entries: Sequence[CatalogueEntry], license: str | None = None
) -> dict[str, bytes]:
    """Return the dataset card that a Hub repository is to have, by its path; nothing where somebody wrote one of their own.

    Args:
        remote: the repository.
        entries: the caches in it.
        license: see `dataset_card`.
    """
    if remote.address.parts:
        return {}
    with suppress(MissingError):
        before = receive_document(remote, CARD_FILE, MAX_CARD_BYTES).decode(errors="replace")
        if MADE_BY_US not in before:
            return {}
    return {CARD_FILE: dataset_card(entries, remote, license if len(entries) == 1 else None).encode()}


def merged_metadata(
    united: Manifest, ours: Manifest | None, theirs: Manifest
) -> tuple[Mapping[str, bytes], Manifest]:
    """Return the Zarr metadata to write because neither copy has all of the cache, and the manifest with them."""
    if ours is None or united in (ours, theirs):
        return {}, united
    documents = metadata_documents(united.inventory)
    groups = {path: documents[path] for path in group_metadata_paths(united.inventory)}
    metadata = metadata_records(groups, united.metadata, united.inventory)
    return groups, replace(united, metadata=metadata)
