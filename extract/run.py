"""`featcache extract`, as a function: find the answer, or load the backbone and fill a cache."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.extract.models import ModelName, resolve_model
from featcache.extract.request import ExtractRequest
from featcache.extract.sources import resolve_source
from featcache.extract.sources.base import Source
from featcache.store.catalogue import Entry, cache_directory, find_key, find_request
from featcache.store.errors import CacheCompletedError, CacheError, InterruptedRunError
from featcache.store.files import JsonObject
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.layers import TOKEN_KINDS
from featcache.store.planning import plan_split
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import open_cache, require_files
from featcache.store.requests import AUTO, record_request
from featcache.store.spec import PRECISIONS, CacheSpec
from featcache.store.writing.writer import CacheWriter

if TYPE_CHECKING:
    import torch

    from featcache.extract.backbones.base import Backbone
    from featcache.extract.pipeline import FeatureExtractor


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction gave."""

    path: Path
    key: str
    cached: bool
    """The cache was complete already; nothing was computed."""
    samples: int
    """Samples extracted by this run."""
    seconds: float
    """Time that the backbone and its data took in this run, without loading."""

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values."""
        rate = None if self.cached or not self.seconds else round(self.samples / self.seconds, 2)
        return {
            "path": str(self.path),
            "key": self.key,
            "cached": self.cached,
            "samples": self.samples,
            "seconds": round(self.seconds, 3),
            "images_per_second": rate,
        }


def extract(
    request: ExtractRequest, search: Sequence[Path], *, reporter: Reporter | None = None, command: str = ""
) -> ExtractResult:
    """Make sure that a complete cache answers `request`.

    A request that a cache under one of the roots answers returns at once, without importing torch. Otherwise the
    backbone runs once over the dataset; an earlier run that was stopped is taken up at its last committed block.

    Args:
        request: what is wanted.
        search: roots to look in; a new cache goes under the first.
        reporter: receives messages and progress.
        command: the command line, for provenance.

    Raises:
        RequestError, UnknownNameError: the request is wrong.
        DatasetError: the dataset cannot be used.
        BackboneError: the backbone cannot be loaded or its features would be wrong.
        InterruptedRunError: Ctrl-C; committed blocks stay.
    """
    reporter = reporter or Silent()
    model = resolve_model(request.model)
    source = resolve_source(request.dataset, request.split_seed, request.limit)
    literals = []
    for literal in request.literals(model, source.identity):
        literals.append(literal)
        found = find_request(search, literal)
        if found is not None and found.complete:
            return _cached(found, literals)
    _ = source.splits  # what is wrong with the dataset shows before the backbone is loaded
    return _Extraction(request, model, source, literals, search, reporter, command).run()


def _cached(entry: Entry, literals: Sequence[JsonObject]) -> ExtractResult:
    """The answer that a complete cache is, once its files are seen to be there.

    Raises:
        CacheError: the cache is damaged; the message says what to do.
    """
    try:
        cache = open_cache(entry.path)
    except CacheError as error:
        raise CacheError(
            f"{error}; remove the cache (`featcache rm {entry.path}`) and extract it again"
        ) from None
    require_files(cache)
    with suppress(OSError):  # a shared root may be read-only; then the next run has to look a little longer
        for literal in literals:
            record_request(entry.path, literal)
    return ExtractResult(entry.path, entry.key, True, 0, 0.0)


class _Extraction:
    """One run that needs the backbone."""

    def __init__(
        self,
        request: ExtractRequest,
        model: ModelName,
        source: Source,
        literals: Sequence[JsonObject],
        search: Sequence[Path],
        reporter: Reporter,
        command: str,
    ) -> None:
        self._request = request
        self._model = model
        self._source = source
        self._literals = literals
        self._search = search
        self._reporter = reporter
        self._command = command
        self._started = time.time()

    def run(self) -> ExtractResult:
        from featcache.extract.backbones import load_backbone
        from featcache.extract.device import choose_device
        from featcache.extract.selftest import self_test

        device = choose_device(self._request.device)
        origin = self._request.weights or "the Hugging Face Hub"
        self._reporter.message(f"loading {self._model.explicit} on {device}, weights from {origin}")
        backbone = load_backbone(self._model, self._request.weights)
        backbone.module.to(device)
        spec, entry = self._find_spec(backbone, device)
        if entry is not None and entry.complete:
            return _cached(entry, self._literals)
        self_test(backbone, device)
        if entry is None or self._search[0] not in entry.path.parents:
            # What was begun under another root is that root's business: it may be shared, or read-only.
            path = cache_directory(self._search[0], self._source.name, self._model.given, spec)
        else:
            path = entry.path
        return self._fill(path, self._plan(spec, device), backbone, device)

    def _find_spec(self, backbone: "Backbone", device: "torch.device") -> tuple[CacheSpec, Entry | None]:
        """The spec, and the cache that has it; precision `auto` takes up whatever a cache has, complete ones first."""
        from featcache.extract.device import fast_precision

        preferred = fast_precision(device) if self._request.precision == AUTO else self._request.precision
        precisions = (
            sorted(PRECISIONS, key=lambda p: p != preferred)
            if self._request.precision == AUTO
            else [preferred]
        )
        specs = [CacheSpec(backbone.spec, self._source.identity, self._request.dtype, p) for p in precisions]
        found = [(spec, entry) for spec in specs if (entry := find_key(self._search, spec.key)) is not None]
        if not found:
            return specs[0], None
        return max(found, key=lambda pair: pair[1].complete)

    def _plan(self, spec: CacheSpec, device: "torch.device") -> Plan:
        from featcache.extract.device import default_batch_size

        id_bytes = max(len(sample.id.encode()) for part in self._source.splits.values() for sample in part)
        splits = {
            name: plan_split(
                name,
                len(samples),
                layers=[str(layer) for layer in range(spec.backbone.num_layers)],
                tokens=TOKEN_KINDS,
                width=spec.backbone.width,
                dtype=spec.dtype,
                sample_id_bytes=id_bytes,
            )
            for name, samples in self._source.splits.items()
        }
        inventory = Inventory(splits, tuple(self._source.class_names))
        return Plan(spec, inventory, self._request.batch_size or default_batch_size(device))

    def _fill(self, path: Path, plan: Plan, backbone: "Backbone", device: "torch.device") -> ExtractResult:
        from featcache.extract.pipeline import FeatureExtractor

        extractor = FeatureExtractor(backbone, device, plan.spec.precision, TOKEN_KINDS, plan.spec.dtype)
        try:
            with CacheWriter(path, plan) as writer:
                for literal in self._literals:
                    record_request(path, literal)
                started = time.perf_counter()
                try:
                    samples = self._run_blocks(writer, extractor, backbone, device)
                except KeyboardInterrupt:
                    raise _interrupted(writer) from None
                result = ExtractResult(path, plan.spec.key, False, samples, time.perf_counter() - started)
                self._finish(writer, result, backbone, device)
        except CacheCompletedError:  # by another process, a moment ago
            return ExtractResult(path, plan.spec.key, True, 0, 0.0)
        return result

    def _run_blocks(
        self, writer: CacheWriter, extractor: "FeatureExtractor", backbone: "Backbone", device: "torch.device"
    ) -> int:
        from featcache.extract.device import default_workers
        from featcache.extract.pipeline import run_blocks

        workers = default_workers(device) if self._request.workers is None else self._request.workers
        done, total = writer.committed_rows(), writer.plan.inventory.num_samples
        if done:
            self._reporter.message(f"resuming {writer.directory}: {done} of {total} samples are committed")
        asked = self._request.batch_size or writer.plan.batch_size
        if asked != writer.plan.batch_size:
            self._reporter.message(
                f"the batch size stays {writer.plan.batch_size}, as it was when this cache was begun"
            )
        samples = 0
        while True:
            with self._reporter.progress("extracting", "images") as update:
                samples += run_blocks(writer, self._source, extractor, backbone.transform, workers, update)
            if writer.pending():
                self._reporter.message(
                    f"waiting for {len(writer.pending())} blocks that other processes extract"
                )
            if not writer.wait():
                return samples

    def _finish(
        self, writer: CacheWriter, result: ExtractResult, backbone: "Backbone", device: "torch.device"
    ) -> None:
        from featcache.extract.provenance import card, provenance

        names = {
            "model": [self._model.given, self._model.explicit],
            "dataset": [self._source.name, self._request.dataset],
        }
        document = provenance(
            writer.plan, result, backbone.loaded.weights_source, device, names, self._command, self._started
        )
        writer.finish(document, card(writer.plan, names))


def _interrupted(writer: CacheWriter) -> InterruptedRunError:
    done, total = writer.committed_rows(), writer.plan.inventory.num_samples
    return InterruptedRunError(
        f"interrupted: {done} of {total} samples are committed in {writer.directory}; "
        "run the same command again to go on"
    )
