"""`featcache rm` of a cache on a remote."""

from dataclasses import dataclass

from featcache.store.address import Address, CacheName
from featcache.store.errors import CacheBusyError, CacheNotFoundError, RequestError
from featcache.store.manifest import MANIFEST_FILE
from featcache.store.network.concurrency import retry
from featcache.store.transfer.catalogue import (
    Catalogue,
    cache_files,
    find_cache,
    not_found,
    read_catalogue,
    refuse_extraction,
)
from featcache.store.transfer.documents import repository_card
from featcache.store.transfer.remotes.base import Remote


@dataclass(frozen=True)
class Removable:
    """A cache on a remote, and what would go with it."""

    remote: Remote
    name: CacheName
    files: tuple[str, ...]
    """Paths on the remote, the manifest first if it is there: without it nobody takes the rest for a cache."""
    num_bytes: int
    entries: tuple[str, ...]
    """Its files in the catalogue."""

    @property
    def where(self) -> str:
        """Its address."""
        return self.remote.where(str(self.name))

    def remove(self) -> None:
        """Remove it: the manifest, then its entry in the catalogue, then the data.

        Raises:
            RemoteError: the remote cannot be reached or refuses; run it again.
        """
        manifest = f"{self.name}/{MANIFEST_FILE}"
        retry(lambda: self.remote.delete([path for path in self.files if path == manifest]))
        retry(lambda: self.remote.delete(list(self.entries)))
        retry(lambda: self.remote.delete([path for path in self.files if path != manifest]))
        if self.remote.knows_digests:
            entries = retry(lambda: read_catalogue(self.remote)).entries
            card = repository_card(self.remote, entries)
            if card:
                retry(lambda: self.remote.publish(card, f"featcache rm: {self.name}"))


def find_removable(address: Address) -> Removable:
    """Find a cache on a remote, whole or half-pushed; whoever gets it closes its remote.

    Raises:
        CacheNotFoundError: nothing of it is there; the message lists what is.
        RequestError: the remote is read-only.
        RemoteError: it cannot be reached.
    """
    remote, name = find_cache(address)
    if not remote.writable:
        raise RequestError(f"{remote.where()} is read-only; nothing can be removed there")
    remote_files = cache_files(remote, name)
    try:
        refuse_extraction(remote, name, remote_files)
    except CacheBusyError:
        remote.close()
        raise
    catalogue: Catalogue = retry(lambda: read_catalogue(remote))
    entries = tuple(catalogue.paths(name))
    if not remote_files and not entries:
        error: CacheNotFoundError = not_found(remote, name)
        remote.close()
        raise error
    files = tuple(f"{name}/{path}" for path in remote_files)
    return Removable(remote, name, files, sum(file.size for file in remote_files.values()), entries)
