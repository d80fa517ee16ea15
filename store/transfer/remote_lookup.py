"""Look-up of caches on the remotes of a team before a backbone runs: an existing cache is pulled, not computed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from featcache.store.address import Address, CacheName, parse_address, split_cache_address
from featcache.store.catalogue import Entry, report_unreadable, slug
from featcache.store.catalogue.entries import folder_entry
from featcache.store.errors import CacheError, FeatcacheError
from featcache.store.files import JsonObject
from featcache.store.inventory import Inventory
from featcache.store.manifest import Manifest
from featcache.store.partial_copy import PartialCopy
from featcache.store.progress import Reporter
from featcache.store.requests import answers

Part = Callable[[Manifest], Inventory | None]
"""The part of a cache that is wanted, given its manifest; None if it does not hold all that is wanted."""

MAX_CANDIDATES = 16
"""Caches of one dataset whose remembered requests are read."""


class RemoteLookup:
    """The remotes where teammates push, asked in order.

    A remote that cannot be reached, or gives a bad answer, is left out with a note; the features can be computed instead.
    """

    def __init__(self, remotes: Sequence[Address], search: Sequence[Path], reporter: Reporter) -> None:
        self._remotes, self._search, self._reporter = list(remotes), search, reporter
        self.remembered: list[tuple[str, list[JsonObject]]] = []
        """Addresses of the caches of the dataset that `find_request` looked at, and the literal requests that each remembers."""

    def find_request(self, requests: Sequence[JsonObject], dataset: str, part: Part) -> Entry | None:
        """Pull the cache that remembers one of these literal requests; None if there is none.

        Args:
            requests: the literal requests.
            dataset: name of the dataset, in whose folder such a cache lies.
            part: what is wanted of it.
        """
        from featcache.store.transfer.documents import fetch_requests
        from featcache.store.transfer.remotes import open_remote

        report_unreadable(self._search, self._reporter)  # an unreadable cache may be the answer

        def matching(address: Address) -> list[CacheName]:
            names = [name for name in self._names(address) if name.dataset == slug(dataset)]
            found = []
            with open_remote(address) as remote:
                for name in names[:MAX_CANDIDATES]:
                    recorded = fetch_requests(remote, name)
                    self.remembered.append((remote.where(str(name)), recorded))
                    if any(answers(one, wanted) for one in recorded for wanted in requests):
                        found.append(name)
            return found

        return self._first(matching, part) if requests else None

    def find_key(self, key: str, here: Entry | None, part: Part) -> Entry | None:
        """Pull the cache with this key, or complete the partial copy `here`; None if no remote has it."""
        if here is not None and here.complete and self.complete(here, part):
            return here
        return self._first(lambda address: [n for n in self._names(address) if n.key == key], part)

    def complete(self, entry: Entry, part: Part) -> bool:
        """Fetch what a partial copy lacks of what is wanted from where it came from; False if it is not one."""
        held = PartialCopy.read(entry.path)
        if held is None or not held.origin or part(Manifest.read(entry.path)) is None:
            return False
        address, name = split_cache_address(parse_address(held.origin))
        if name is None:
            return False
        self._reporter.message(f"{entry.path} is a partial copy; completing it from {held.origin}")
        # An extraction cannot write into a partial copy, which may be the last copy of the cache.
        remedy = f"remove the copy (`featcache rm {entry.path}`) and run this again to extract it here"
        try:
            pulled = self._pull(address, name, part)
        except FeatcacheError as error:
            raise CacheError(
                f"{entry.path} could not be completed ({error}); try again later, or {remedy}"
            ) from error
        if pulled is None:
            raise CacheError(f"{held.origin} no longer holds what {entry.path} lacks; {remedy}")
        entry.__dict__.pop("cache", None)
        return True

    def _names(self, address: Address) -> Iterator[CacheName]:
        from featcache.store.network.concurrency import retry
        from featcache.store.transfer.catalogue import read_catalogue
        from featcache.store.transfer.remotes import open_remote

        with open_remote(address) as remote:
            yield from (entry.name for entry in retry(lambda: read_catalogue(remote)).entries)

    def _first(self, names: Callable[[Address], Sequence[CacheName]], part: Part) -> Entry | None:
        for address in list(self._remotes):
            try:
                candidates = list(names(address))
            except FeatcacheError as error:
                self._exclude(address, f"was not looked at ({error})")
                continue
            try:
                for name in candidates:
                    entry = self._pull(address, name, part)
                    if entry is not None:
                        return entry
            except FeatcacheError as error:
                self._exclude(address, f"is left out, its copy could not be pulled ({error})")
        return None

    def _exclude(self, address: Address, why: str) -> None:
        """Report once why a remote is not used; it is not asked again in this run."""
        self._remotes.remove(address)
        self._reporter.message(f"note: {address} {why}")

    def _pull(self, address: Address, name: CacheName, part: Part) -> Entry | None:
        from featcache.store.transfer.manifests import fetch_manifest
        from featcache.store.transfer.pull import copy_directory, discard_unfinished, fetch_part
        from featcache.store.transfer.remotes import open_remote

        with open_remote(address) as remote:
            theirs = fetch_manifest(remote, name)
            needed = None if theirs is None else part(theirs.manifest)
            if theirs is None or needed is None:
                return None
            self._reporter.message(
                f"a teammate has this cache: pulling {remote.where(str(name))} (--force to extract it here)"
            )
            directory = copy_directory(self._search, name)
            try:
                done = fetch_part(remote, name, theirs, needed, directory, reporter=self._reporter)
            except FeatcacheError:
                discard_unfinished(directory)
                raise
            return folder_entry(done.path)
