"""Find the complete cache that answers a request: by the remembered request, by the key, here or on a remote."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from featcache.extraction.cached.answers import Answers, OutdatedCacheError, Verdict, damaged, holds
from featcache.extraction.cached.orientation import unturned_note
from featcache.extraction.cached.other_preprocessing import notes_on_others
from featcache.extraction.cached.retry import reopen_restored
from featcache.extraction.models.table import TABLE
from featcache.extraction.requests.inputs import Inputs
from featcache.extraction.requests.request import EXIF
from featcache.store.address import Address
from featcache.store.catalogue import Entry, find_key, find_request
from featcache.store.catalogue.removal import remove_journal
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject
from featcache.store.inventory import Inventory
from featcache.store.manifest import Manifest
from featcache.store.progress import Reporter
from featcache.store.reading.reader import Cache, open_cache, require_files
from featcache.store.requests import record_request
from featcache.store.spec import CacheSpec
from featcache.store.transfer.remote_lookup import RemoteLookup

Candidates = Callable[[Mapping[str, Any]], Sequence[CacheSpec]]


class CacheLookup:
    """Looks for the answer to one request. Nothing here imports torch.

    Args:
        inputs: the request with model and dataset.
        search: roots to look in; only caches under the first one are changed.
        reporter: receives messages.
        remotes: addresses where teammates may have pushed the answer.
    """

    def __init__(
        self, inputs: Inputs, search: Sequence[Path], reporter: Reporter, remotes: Sequence[Address] = ()
    ) -> None:
        self._inputs = inputs
        self._search = search
        self._reporter = reporter
        self._remotes = RemoteLookup(remotes, search, reporter)
        self._answers = Answers(inputs.source, search, reporter)
        self._fingerprints: list[JsonObject] = []
        """Literal requests, by which later runs find the cache before a backbone is loaded."""

    def find_by_request(self) -> Entry | None:
        """Return the complete cache that remembers the request and holds everything requested.

        Raises:
            UnknownNameError, RequestError: the dataset has no such split, or the model no such layer or token.
            CacheError: a cache that remembers the request is damaged or outdated.
        """
        inputs = self._inputs
        entry = self._find_remembered()
        if entry is not None:
            verdict = self._verdict(entry)
            if verdict is Verdict.REPLACED and (entry := self._find_remembered()) is not None:
                verdict = self._verdict(entry)
            if verdict is not Verdict.REPLACED:
                return entry if verdict is Verdict.ANSWER else None
        # What is wrong with the request shows before the backbone is loaded, perhaps over the network.
        inputs.request.choose_splits(list(inputs.source.splits))
        if inputs.custom_backbone is None and inputs.model.explicit in TABLE:
            num_layers, _, _, num_registers, *_ = TABLE[inputs.model.explicit]
            inputs.request.require_of(inputs.model.explicit, num_layers, num_registers)
        found = self._answering(
            self._remotes.find_request(self._fingerprints, inputs.source.name, self._part)
        )
        if found is None:
            remembered = self._remotes.remembered
            for note in notes_on_others(self._search, self._fingerprints, inputs.model, remembered):
                self._reporter.message(f"note: {note}")
        return found

    def find_spec(self, candidates: Candidates) -> tuple[CacheSpec, Entry | None]:
        """Return the spec of the images that lie on disk now, and the cache that has it, complete or not.

        Args:
            candidates: the specs that meet the request, by the identity of the dataset, the preferred one first.
        """
        spec, entry = self._find_spec(candidates)
        if entry is not None and self._answers.is_replaced(entry):
            spec, entry = self._find_spec(candidates)
            if entry is not None:
                self._answers.is_replaced(entry)
        return spec, entry

    def find_by_key(self, spec: CacheSpec, entry: Entry | None, wanted: Inventory) -> Entry | None:
        """Return the complete cache that has the key of `spec` and holds all of `wanted`; None if a run has to make it.

        Args:
            spec: the spec; see `find_spec`.
            entry: the local cache that has this spec. If rows of it can be extracted now that failed before, their blocks
                are removed.
            wanted: everything requested.

        Raises:
            CacheError: the cache is damaged, outdated, or a partial copy that could not be completed.
        """
        if entry is not None and entry.complete and entry.cache.inventory.covers(wanted):
            if self._verdict(entry) is Verdict.ANSWER:
                return entry
            reopen_restored(entry.path, self._answers.retry)
        return self._answering(self._remotes.find_key(spec.key, entry, self._part))

    def confirm(self, entry: Entry) -> None:
        """Check that the files of an answer are there, and let it remember the request.

        Raises:
            CacheError: the cache is damaged; the message says what to do.
        """
        try:
            cache = open_cache(entry.path)
        except CacheError as error:
            raise damaged(entry, error) from None
        require_files(cache)
        self.note_orientation(cache)
        # A shared root may be read-only, or busy; then the next run has to look a little longer.
        with suppress(OSError, CacheError):
            self._remember(entry.path)
            remove_journal(entry.path)

    def note_orientation(self, cache: Cache) -> None:
        """Report images that a new cache would turn upright and a complete one does not, unless the request says which is meant."""
        if self._inputs.request.exif is None and (note := unturned_note(cache, self._inputs.source)):
            self._reporter.message(f"note: {note}")

    def record(self, directory: Path) -> None:
        """Let a cache that is being made remember the request and the states of the dataset's files."""
        self._remember(directory)
        self._answers.record(directory)

    def _remember(self, directory: Path) -> None:
        for fingerprint in self._fingerprints:
            record_request(directory, fingerprint)
            if EXIF in fingerprint:  # an answer to the request that leaves it open as well
                record_request(directory, {name: fingerprint[name] for name in fingerprint if name != EXIF})

    def _find_remembered(self) -> Entry | None:
        self._fingerprints.clear()
        inputs = self._inputs
        if inputs.custom_backbone is not None:  # the content of a custom module is known only by its digest
            return None
        for fingerprint in inputs.request.literals(
            inputs.model, self._answers.identity, inputs.source.may_be_turned
        ):
            self._fingerprints.append(fingerprint)
            entry = find_request(self._search, fingerprint, self._is_preferred)
            if entry is None or not entry.complete:
                continue
            if holds(entry, inputs.request, inputs.source) or self._remotes.complete(entry, self._part):
                return entry
        return None

    def _find_spec(self, candidates: Candidates) -> tuple[CacheSpec, Entry | None]:
        specs = candidates(self._answers.identity)
        found = [(spec, entry) for spec in specs if (entry := find_key(self._search, spec.key)) is not None]
        if not found:
            return specs[0], None
        spec, entry = max(found, key=lambda pair: pair[1].complete)
        if spec.backbone.resize != specs[0].backbone.resize:
            self._reporter.message(
                f"{entry.path} was begun with --resize {spec.backbone.resize}, which it keeps"
            )
        if not entry.complete and spec.backbone.upright != specs[0].backbone.upright:
            self._reporter.message(
                f"{entry.path} was begun with images as stored, not turned by their EXIF orientation, which it keeps (--exif "
                "begins one with images upright)"
            )
        return spec, entry

    def _is_preferred(self, entry: Entry) -> bool:
        try:
            return (
                entry.cache.spec.backbone.upright
                == self._inputs.request.orientations(self._inputs.source.may_be_turned)[0]
            )
        except CacheError:
            return False

    def _answering(self, entry: Entry | None) -> Entry | None:
        return entry if entry is not None and self._verdict(entry) is Verdict.ANSWER else None

    def _verdict(self, entry: Entry) -> Verdict:
        try:
            return self._answers.verdict(entry)
        except OutdatedCacheError:
            raise
        except CacheError as error:
            raise damaged(entry, error) from None

    def _part(self, manifest: Manifest) -> Inventory | None:
        """Return the part of a cache that answers the request; None if the cache does not hold all of it."""
        splits = list(self._inputs.source.splits)
        return self._inputs.request.part_of(manifest.inventory, manifest.spec.backbone, splits)
