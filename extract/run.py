"""`featcache extract`, as a function: find the answer, or load the backbone and fill a cache, or add to one."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.extraction.cached.answers import Answers, OutdatedCacheError, Verdict, damaged, holds
from featcache.extraction.cached.retry import drop_restored, refuse_empty_splits, reopen_restored
from featcache.extraction.models.names import ModelName, resolve_model
from featcache.extraction.models.table import TABLE
from featcache.extraction.planning.estimate import Estimate, Speed
from featcache.extraction.planning.inventory import plan_inventory
from featcache.extraction.provenance.summary import dataset_summary, preprocessing_text
from featcache.extraction.requests.request import SKIP, ExtractRequest
from featcache.extraction.result import ExtractResult
from featcache.extraction.running.unfinished import covers, interrupted, plan_messages, recorded_batch_size
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Source
from featcache.store.address import Address
from featcache.store.catalogue import Entry, cache_directory, find_key, find_request
from featcache.store.catalogue.removal import remove_journal
from featcache.store.errors import CacheCompletedError, CacheError
from featcache.store.files import JsonObject
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.machine import allow_open_files
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.partial_copy import require_complete_copy
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import open_cache, require_files
from featcache.store.requests import AUTO, record_request
from featcache.store.spec import PRECISIONS, CacheSpec
from featcache.store.transfer.remote_lookup import RemoteLookup
from featcache.store.writing.pending import pending_work, require_space
from featcache.store.writing.writer import CacheWriter

if TYPE_CHECKING:
    import torch

    from featcache.extraction.backbones.base import Backbone
    from featcache.extraction.running.pipeline import ImageInput


def extract(
    request: ExtractRequest,
    search: Sequence[Path],
    *,
    backbone: "Backbone | None" = None,
    source: Source | None = None,
    reporter: Reporter | None = None,
    command: str = "",
    remotes: Sequence[Address] = (),
) -> ExtractResult:
    """Make sure that a complete cache answers `request`.

    A request that a cache under one of the roots answers returns at once, without importing torch. Otherwise the
    backbone runs once over the dataset; an earlier run that was stopped is taken up at its last committed block. To a
    complete cache goes only what it lacks: splits, taps, layers, groups of tokens.

    Args:
        request: what is wanted.
        search: roots to look in; a new cache goes under the first.
        backbone: one's own, made by `custom_backbone`; the request's `model` is then just its name.
        source: one's own dataset, made by `python_dataset`; the request's `dataset` is then just its name.
        reporter: receives messages and progress.
        command: the command line, for provenance.
        remotes: where teammates may have pushed the answer; it is pulled from there instead of being computed.

    Raises:
        RequestError, UnknownNameError: the request is wrong.
        DatasetError: the dataset cannot be used.
        BackboneError: the backbone cannot be loaded or its features would be wrong.
        InterruptedRunError: Ctrl-C; committed blocks stay.
    """
    extraction = _Extraction(request, search, reporter or Silent(), command, backbone, source, remotes)
    found = extraction.find_literally()
    return extraction.cached(found) if found is not None else extraction.run()


def dry_run(request: ExtractRequest, search: Sequence[Path], *, reporter: Reporter | None = None) -> Estimate:
    """Say what `extract` would do, and how long it would take; arguments and errors as there. Nothing is written."""
    extraction = _Extraction(request, search, reporter or Silent(), "")
    found = extraction.find_literally()
    return extraction.describe(found) if found is not None else extraction.estimate()


class _Extraction:
    """One run: the answer that is there already, or what it takes to make one."""

    def __init__(
        self,
        request: ExtractRequest,
        search: Sequence[Path],
        reporter: Reporter,
        command: str,
        backbone: "Backbone | None" = None,
        source: Source | None = None,
        remotes: Sequence[Address] = (),
    ) -> None:
        self._teammates = RemoteLookup(remotes, search, reporter)
        self._request = request
        self._search = search
        self._reporter = reporter
        self._command = command
        self._started = time.time()
        self._own = backbone
        self._model = (
            resolve_model(request.model)
            if backbone is None
            else ModelName(request.model, "custom", request.model)
        )
        self._source = source or resolve_source(request.dataset, request, reporter)
        chosen = [name for name in self._source.splits if name in request.splits or not request.splits]
        self._summary = dataset_summary(self._source, chosen)
        reporter.message(f"{self._source.name}: {self._summary}")
        for note in self._source.notes:
            reporter.message(f"note: {note}")
        self._literals: list[JsonObject] = []
        self._answers = Answers(self._source, search, reporter)

    def find_literally(self) -> Entry | None:
        """The complete cache that answers the request, if one remembers it; needs no torch."""
        found = self._find_complete()
        if found is not None:
            verdict = self._verdict(found)
            if verdict is Verdict.REPLACED and (found := self._find_complete()) is not None:
                verdict = self._verdict(found)
            if verdict is not Verdict.REPLACED:
                return found if verdict is Verdict.ANSWER else None
        # What is wrong with the request shows before the backbone is loaded, perhaps over the network.
        self._request.choose_splits(list(self._source.splits))
        if self._own is None and self._model.explicit in TABLE:
            num_layers, _, _, num_registers, *_ = TABLE[self._model.explicit]
            self._request.require_of(self._model.explicit, num_layers, num_registers)
        fetched = self._teammates.find_request(self._literals, self._source.name, self._part)
        return fetched if fetched is not None and self._verdict(fetched) is Verdict.ANSWER else None

    def _find_complete(self) -> Entry | None:
        """The complete cache that remembers the request and holds everything requested."""
        self._literals.clear()
        if self._own is not None:  # the content of a custom module is known only by its digest
            return None
        for literal in self._request.literals(self._model, self._answers.identity):
            self._literals.append(literal)
            found = find_request(self._search, literal)
            if found is None or not found.complete:
                continue
            if holds(found, self._request, self._source) or self._teammates.complete(found, self._part):
                return found
        return None

    def _verdict(self, entry: Entry) -> Verdict:
        try:
            return self._answers.verdict(entry)
        except OutdatedCacheError:
            raise
        except CacheError as error:
            raise damaged(entry, error) from None

    def _part(self, whole: Manifest) -> Inventory | None:
        """The part of a cache that answers the request; None if it does not hold all of it."""
        num_layers = whole.spec.backbone.num_layers
        return self._request.part_of(whole.inventory, num_layers, list(self._source.splits))

    def cached(self, entry: Entry) -> ExtractResult:
        """The answer that a complete cache is, once its files are seen to be there.

        Raises:
            CacheError: the cache is damaged; the message says what to do.
        """
        try:
            cache = open_cache(entry.path)
        except CacheError as error:
            raise damaged(entry, error) from None
        require_files(cache)
        # A shared root may be read-only, or busy; then the next run has to look a little longer.
        with suppress(OSError, CacheError):
            for literal in self._literals:
                record_request(entry.path, literal)
            remove_journal(entry.path)
        return ExtractResult(entry.path, entry.key, True, 0, 0.0)

    def describe(self, entry: Entry) -> Estimate:
        """The estimate of a request that a complete cache answers."""
        held = entry.cache.inventory
        return Estimate(entry.path, entry.key, held, held, pending_work(entry.path, held), None)

    def run(self) -> ExtractResult:
        """Load the backbone and make the cache."""
        allow_open_files()
        backbone, device = self._load()
        spec, entry = self._find_fresh(backbone, device)
        wanted = plan_inventory(backbone, self._source, self._request, spec.dtype)
        if entry is not None and entry.complete and entry.cache.inventory.covers(wanted):
            if self._verdict(entry) is Verdict.ANSWER:
                return self.cached(entry)
            reopen_restored(entry.path, self._answers.retry)
        fetched = self._teammates.find_key(spec.key, entry, self._part)
        if fetched is not None and self._verdict(fetched) is Verdict.ANSWER:
            return self.cached(fetched)
        path, plan = self._prepare(spec, entry, wanted, backbone, device)
        require_complete_copy(path, "added to")
        return self._fill(path, plan, backbone, device)

    def estimate(self) -> Estimate:
        """Load the backbone and find out what a run would do."""
        from featcache.extraction.forward_pass.extractors import Forward
        from featcache.extraction.running.speed import images_per_second

        backbone, device = self._load()
        spec, entry = self._find_fresh(backbone, device)
        wanted = plan_inventory(backbone, self._source, self._request, spec.dtype)
        if entry is not None and entry.complete and entry.cache.inventory.covers(wanted):
            return self.describe(entry)
        path, plan = self._prepare(spec, entry, wanted, backbone, device)
        held = Manifest.read(path).inventory if (path / MANIFEST_FILE).exists() else None
        self._reporter.message("running a few batches")
        forward = Forward(backbone, device, self._request.compile, self._reporter.message)
        with forward.extractors(plan) as extractors:
            rate = images_per_second(self._image_input(path, backbone, device), extractors, plan)
        speed = Speed(rate, str(device), spec.precision, plan.batch_size)
        return Estimate(path, spec.key, wanted, held, pending_work(path, wanted), speed)

    def _load(self) -> "tuple[Backbone, torch.device]":
        from featcache.devices.choice import choose_device
        from featcache.extraction.backbones import load_backbone, loading_notes
        from featcache.extraction.forward_pass.capacity import enough_memory

        device = choose_device(self._request.device)
        backbone = self._own
        if backbone is None:
            origin = self._request.weights or "the Hugging Face Hub"
            self._reporter.message(f"loading {self._model.explicit} on {device}, weights from {origin}")
            backbone = load_backbone(self._model, self._request.weights, self._request.weights_key)
            for note in loading_notes(self._model, backbone):
                self._reporter.message(f"note: {note}")
        prepared = preprocessing_text(backbone.spec.preprocessing, backbone.spec.input_size)
        if prepared is not None:
            self._summary += f"; {prepared}"
            self._reporter.message(prepared)
        with enough_memory(device):
            backbone.module.to(device)
        return backbone, device

    def _prepare(
        self,
        spec: CacheSpec,
        entry: Entry | None,
        wanted: Inventory,
        backbone: "Backbone",
        device: "torch.device",
    ) -> tuple[Path, Plan]:
        """Test the backbone, and say where the cache is to be and what it is to hold."""
        from featcache.extraction.forward_pass.capacity import enough_memory
        from featcache.extraction.forward_pass.selftest import self_test
        from featcache.extraction.running.batch_size import fitting_batch_size

        with enough_memory(device):
            self_test(backbone, device)
        if entry is None or self._search[0] not in entry.path.parents:
            # What was begun under another root is that root's business: it may be shared, or read-only.
            path = cache_directory(self._search[0], self._source.name, self._model.given, spec)
        else:
            path = entry.path
        # The recorded one is the writer's choice in any case; a dry run, too, has to go by it.
        size = recorded_batch_size(path) or self._request.batch_size
        return path, Plan(spec, wanted, size or fitting_batch_size(backbone, device, spec, wanted))

    def _find_fresh(self, backbone: "Backbone", device: "torch.device") -> tuple[CacheSpec, Entry | None]:
        """The spec of the images currently on disk, and the cache with that spec."""
        spec, entry = self._find_spec(backbone, device)
        if entry is not None and self._answers.is_replaced(entry):
            spec, entry = self._find_spec(backbone, device)
            if entry is not None:
                self._answers.is_replaced(entry)
        return spec, entry

    def _find_spec(self, backbone: "Backbone", device: "torch.device") -> tuple[CacheSpec, Entry | None]:
        """The spec, and the cache that has it; precision `auto` takes up whatever a cache has, complete ones first."""
        from featcache.devices.precision import fast_precision

        preferred = fast_precision(device) if self._request.precision == AUTO else self._request.precision
        precisions = (
            sorted(PRECISIONS, key=lambda p: p != preferred)
            if self._request.precision == AUTO
            else [preferred]
        )
        specs = [CacheSpec(backbone.spec, self._answers.identity, self._request.dtype, p) for p in precisions]
        found = [(spec, entry) for spec in specs if (entry := find_key(self._search, spec.key)) is not None]
        if not found:
            return specs[0], None
        return max(found, key=lambda pair: pair[1].complete)

    def _fill(self, path: Path, plan: Plan, backbone: "Backbone", device: "torch.device") -> ExtractResult:
        """Write what the cache lacks of `plan`; first, what an earlier run for something else left unfinished."""
        samples, seconds = 0, 0.0
        notes: tuple[str, ...] = ()
        matrix = backbone.projection
        projection = None if matrix is None else matrix.detach().float().cpu().contiguous().numpy()
        if (retried := drop_restored(path, self._source)) is not None:
            self._reporter.message(str(retried))
        while not covers(path, plan.inventory):
            require_space(path, plan.inventory)
            say = self._reporter.message
            with (
                suppress(CacheCompletedError),
                CacheWriter(path, plan, projection=projection, adopt=True, say=say) as writer,
            ):
                for literal in self._literals:
                    record_request(path, literal)
                self._answers.record(path)
                for text in plan_messages(writer, plan, self._request.batch_size):
                    say(text)
                started = time.perf_counter()
                images = self._image_input(writer.directory, backbone, device)
                try:
                    done = self._run_blocks(writer, images, backbone, device)
                except KeyboardInterrupt:
                    raise interrupted(writer) from None
                elapsed = time.perf_counter() - started
                run = {
                    "command": self._command,
                    "started_at": self._started,
                    "samples": done,
                    "seconds": elapsed,
                    "dataset_summary": self._summary,
                    "observed": images.observed.to_dict(),
                }
                self._finish(writer, run, backbone, device)
                samples, seconds = samples + done, seconds + elapsed
                notes = (*notes, *images.observed.notes(self._source.pixels))
        # Nothing done by this process: another completed the cache a moment ago.
        return ExtractResult(path, plan.spec.key, not samples, samples, seconds, notes)

    def _run_blocks(
        self, writer: CacheWriter, images: "ImageInput", backbone: "Backbone", device: "torch.device"
    ) -> int:
        from featcache.extraction.forward_pass.extractors import Forward
        from featcache.extraction.running.pipeline import run_blocks

        forward = Forward(backbone, device, self._request.compile, self._reporter.message)
        samples = 0
        with forward.extractors(writer.plan) as extractors:
            while True:
                with self._reporter.progress("extracting", "images") as update:
                    samples += run_blocks(writer, images, extractors, update)
                if writer.pending():
                    self._reporter.message(
                        f"waiting for {len(writer.pending())} blocks that other processes extract"
                    )
                if not writer.wait():
                    return samples

    def _image_input(self, path: Path, backbone: "Backbone", device: "torch.device") -> "ImageInput":
        from featcache.extraction.forward_pass.capacity import default_workers
        from featcache.extraction.running.pipeline import ImageInput

        known = {}
        if (path / MANIFEST_FILE).exists():
            held = open_cache(path)
            known = {
                name: digests
                for name in held.inventory.splits
                if (digests := held[name].content_digests()) is not None
            }
        return ImageInput(
            self._source,
            backbone.transform,
            backbone.spec.input_size,
            default_workers() if self._request.workers is None else self._request.workers,
            device,
            self._request.on_error == SKIP,
            self._reporter.message,
            known,
        )

    def _finish(
        self, writer: CacheWriter, run: JsonObject, backbone: "Backbone", device: "torch.device"
    ) -> None:
        from featcache.extraction.provenance.dataset_card import about_dataset
        from featcache.extraction.provenance.document import card, provenance

        refuse_empty_splits(writer)
        names = {
            "model": [self._model.given, self._model.explicit],
            "dataset": [self._source.name, self._request.dataset],
        }
        document = provenance(writer, backbone.loaded.weights_source, device, names, run)
        writer.finish(document, card(writer.plan, names, about_dataset(writer, self._source.citation)))
