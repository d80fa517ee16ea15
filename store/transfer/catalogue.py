"""Catalogue of a remote, read by one listing: an empty file for every cache, whose name holds its summary.

Pushes that run at the same time write different files, so none can lose another's. Names have a few parts with ``@``
between them; whatever does not read as one is passed over.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from featcache.store.address import Address, CacheName, split_cache_address, split_key_prefix
from featcache.store.catalogue.entries import slug
from featcache.store.catalogue.ownership import is_own_path
from featcache.store.catalogue.removal import CATALOGUE
from featcache.store.errors import (
    CacheBusyError,
    CacheNotFoundError,
    FeatcacheError,
    RemoteError,
    RequestError,
)
from featcache.store.journal import JOURNAL
from featcache.store.manifest import Manifest, manifest_digest
from featcache.store.network.concurrency import retry
from featcache.store.transfer.remotes import open_remote
from featcache.store.transfer.remotes.base import Remote, RemoteFile

PUSHING = "pushing"
_NUMBER = r"[0-9]{1,15}"
_STATE = re.compile(
    rf"(?P<digest>[0-9a-f]{{16}})@(?P<bytes>{_NUMBER})@(?P<layers>{_NUMBER})@(?P<train>{_NUMBER})@(?P<test>{_NUMBER})"
)
_PUSH = re.compile(rf"{PUSHING}@(?P<digest>[0-9a-f]{{16}})")


@dataclass(frozen=True)
class CatalogueEntry:
    """One cache on a remote."""

    name: CacheName
    digest: str
    """`manifest_digest` of what was pushed."""
    num_bytes: int
    num_layers: int
    train: int
    """Samples of the train split; 0 if there is none."""
    test: int
    modified: float | None = None
    """Seconds since the epoch when it was pushed, where the remote tells."""

    @classmethod
    def of(cls, name: CacheName, manifest: Manifest) -> Self:
        """Return the entry of a whole cache."""
        inventory = manifest.inventory
        layers = {
            layer
            for split in inventory.splits.values()
            for array in split.arrays.values()
            for layer in array.layers
        }
        samples = {split.name: split.num_samples for split in inventory.splits.values()}
        return cls(
            name,
            manifest_digest(manifest),
            inventory.num_bytes,
            len(layers),
            samples.get("train", 0),
            samples.get("test", 0),
        )

    @property
    def path(self) -> str:
        """Path of its file on the remote."""
        numbers = (self.num_bytes, self.num_layers, self.train, self.test)
        return f"{_stem(self.name)}@{self.digest}@{'@'.join(map(str, numbers))}"


@dataclass(frozen=True)
class Catalogue:
    """The listing of one remote."""

    entries: tuple[CatalogueEntry, ...]
    """The complete caches."""
    pushing: tuple[tuple[CacheName, str], ...]
    """Caches that are being pushed, or whose push was interrupted, with the digest of their manifest."""
    outdated: tuple[str, ...] = ()
    """Paths of entries that a later push has replaced."""

    def of(self, name: CacheName) -> CatalogueEntry | None:
        """Return the entry of one cache; None if it is not there."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def paths(self, name: CacheName) -> list[str]:
        """Return all catalogue files of one cache."""
        entries = [entry.path for entry in self.entries if entry.name == name]
        pushes = [push_marker(name, digest) for pushed, digest in self.pushing if pushed == name]
        return [*entries, *pushes, *(path for path in self.outdated if path.startswith(f"{_stem(name)}@"))]


def push_marker(name: CacheName, digest: str) -> str:
    """Return the path of the file that marks the begin of a push of this very content."""
    return f"{_stem(name)}@{PUSHING}@{digest}"


def is_marker(path: str) -> bool:
    """Return whether a file of the catalogue marks the begin of a push."""
    return f"@{PUSHING}@" in path


def cache_files(remote: Remote, name: CacheName) -> dict[str, RemoteFile]:
    """Return the files of one cache on a remote, by path within it; what else somebody put into its folder is not among them."""
    remote_files = retry(lambda: remote.files(str(name)))
    return {path: file for path, file in remote_files.items() if is_own_path(path)}


def refuse_extraction(remote: Remote, name: CacheName, files: Collection[str]) -> None:
    """Refuse to clear a folder in which a cache is being extracted: a shared folder may be a root of others.

    Raises:
        CacheBusyError: the folder holds the journal of an extraction.
    """
    if any(path.startswith(f"{JOURNAL}/") for path in files):
        raise CacheBusyError(
            f"{remote.where(str(name))} is being extracted there, or was interrupted while it was: finish that, "
            "or remove it with `featcache rm` where that folder is a root"
        )


def read_catalogue(remote: Remote) -> Catalogue:
    """List a remote.

    Raises:
        RemoteError: it cannot be reached, refuses, or cannot list.
    """
    newest: dict[CacheName, CatalogueEntry] = {}
    outdated: list[str] = []
    pushing = []
    for file, remote_file in remote.files(CATALOGUE).items():
        read = _parse(file, remote_file)
        if isinstance(read, CatalogueEntry):
            other = newest.get(read.name)
            first, second = (read, other) if other is None or _rank(read) > _rank(other) else (other, read)
            newest[read.name] = first
            outdated += [second.path] if second else []
        elif read is not None:
            pushing.append(read)
    entries = sorted(newest.values(), key=lambda entry: str(entry.name))
    return Catalogue(tuple(entries), tuple(pushing), tuple(outdated))


def search(
    entries: Sequence[CatalogueEntry], model: str | None, dataset: str | None, models: Collection[str] = ()
) -> Iterator[CatalogueEntry]:
    """Yield the entries whose names contain the given text, in any case; for a model, one of its names in `models` matches too."""
    folders = {slug(name) for name in models}
    for entry in entries:
        name = entry.name
        meant = (model or "").lower() in name.model.lower() or name.model in folders
        if meant and (dataset or "").lower() in name.dataset.lower():
            yield entry


def find_cache(address: Address) -> tuple[Remote, CacheName]:
    """Open the remote of a cache and find the name that its address means: in full, or with the beginning of a key.

    Raises:
        CacheNotFoundError: nothing matches; the message lists what there is.
        RequestError: several match, or the address names no cache.
        RemoteError: the remote cannot be reached.
    """
    place, name = split_cache_address(address)
    if name is not None:
        return open_remote(place), name
    begins = split_key_prefix(address)
    remote = open_remote(begins[0] if begins else place)
    try:
        entries = retry(lambda: read_catalogue(remote)).entries
    except FeatcacheError:
        remote.close()
        raise
    matching = [entry.name for entry in entries if begins and entry.name.key.startswith(begins[1])]
    if len(matching) == 1:
        return remote, matching[0]
    remote.close()
    listed = "".join(
        f"\n  {remote.where(str(name))}" for name in (matching or [e.name for e in entries])[:10]
    )
    if matching:
        raise RequestError(f"{len(matching)} caches match; name one in full:{listed}")
    if begins:
        raise CacheNotFoundError(
            f"{remote.where()} has no cache whose key begins with {begins[1]}; there are:{listed or ' none'}"
        )
    raise RequestError(
        f"{address} names no cache; write REMOTE/DATASET/MODEL-KEY{'; there are:' + listed if listed else ''}"
    )


def not_found(remote: Remote, name: CacheName) -> CacheNotFoundError:
    """Return the error for a cache that is not on a remote, with the caches that are, as far as they can be listed."""
    try:
        there = [entry.name for entry in read_catalogue(remote).entries]
    except RemoteError:
        there = []
    near = [other for other in there if other.dataset == name.dataset or other.key == name.key] or there
    listed = "".join(f"\n  {remote.where(str(other))}" for other in near[:10])
    return CacheNotFoundError(
        f"there is no cache {remote.where(str(name))}" + (f"; there are:{listed}" if listed else "")
    )


def _stem(name: CacheName) -> str:
    return f"{CATALOGUE}/{name.dataset}@{name.folder}"


def _rank(entry: CatalogueEntry) -> tuple[float, int, str]:
    return entry.modified or 0.0, entry.num_bytes, entry.digest


def _parse(file: str, remote_file: RemoteFile) -> CatalogueEntry | tuple[CacheName, str] | None:
    dataset, _, rest = file.partition("@")
    folder, _, state = rest.partition("@")
    name = CacheName.parse(dataset, folder)
    if name is None:
        return None
    push = _PUSH.fullmatch(state)
    if push:
        return name, push["digest"]
    match = _STATE.fullmatch(state)
    if match is None:
        return None
    num_bytes, layers, train, test = (int(match[field]) for field in ("bytes", "layers", "train", "test"))
    return CatalogueEntry(name, match["digest"], num_bytes, layers, train, test, remote_file.modified)
