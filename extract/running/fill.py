"""Fill a cache: write the blocks that it lacks, and complete it."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.extraction.cached.lookup import CacheLookup
from featcache.extraction.cached.retry import drop_restored, refuse_empty_splits
from featcache.extraction.decoding.preprocessing import with_resize
from featcache.extraction.decoding.views import view_inputs
from featcache.extraction.forward_pass.capacity import default_workers
from featcache.extraction.forward_pass.device_errors import one_line_device_errors
from featcache.extraction.forward_pass.encoding import Clipping
from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.provenance.dataset_card import about_dataset
from featcache.extraction.provenance.document import RunFacts, card, provenance
from featcache.extraction.requests.inputs import Inputs
from featcache.extraction.requests.request import SKIP
from featcache.extraction.reuse.candidates import alike_in_every_split, mismatch, token_arrays
from featcache.extraction.reuse.content_records import ContentRecords
from featcache.extraction.reuse.division import Reuse
from featcache.extraction.reuse.reusable_rows import ReusableRows
from featcache.extraction.running.loading import LoadedBackbone
from featcache.extraction.running.pipeline import ImageInput, run_blocks
from featcache.extraction.running.scales import ScaleFitter
from featcache.extraction.running.unfinished import covers, interrupted, plan_messages
from featcache.store.errors import CacheCompletedError
from featcache.store.journal import Plan
from featcache.store.manifest import MANIFEST_FILE
from featcache.store.preprocessing import preprocessing_text
from featcache.store.progress import Reporter
from featcache.store.reading.reader import Cache, open_cache
from featcache.store.writing.pending import require_space
from featcache.store.writing.writer import CacheWriter


@dataclass(frozen=True)
class Filled:
    """The work that a run did."""

    samples: int = 0
    """Samples that this process extracted; 0 if another process completed the cache meanwhile."""
    seconds: float = 0.0
    """Time of the passes and of their data, without loading."""
    notes: tuple[str, ...] = ()
    """Notes on images that were not used exactly as stored."""
    reused: int = 0
    """Samples among them that this process took over from other caches."""


@dataclass(frozen=True)
class CacheFiller:
    """Fills the caches of one run."""

    inputs: Inputs
    loaded: LoadedBackbone
    lookup: CacheLookup
    """Lets the cache remember the request."""
    reporter: Reporter
    command: str
    """The command line, for provenance."""
    started: float
    """Time when the run began, seconds since the epoch."""
    reusable: Sequence[Cache] = ()
    """Caches whose rows are taken over where they show the same image."""

    def fill(self, path: Path, plan: Plan) -> Filled:
        """Write what the cache at `path` lacks of `plan`; an earlier run for something else is finished first.

        Raises:
            NotEnoughSpaceError: the disk has too little room.
            DatasetError, BackboneError: an image or a feature is not usable; blocks that were committed stay.
            InterruptedRunError: Ctrl-C; committed blocks stay.
        """
        if (retried := drop_restored(path, self.inputs.source)) is not None:
            self.reporter.message(str(retried))
        filled = Filled()
        while not covers(path, plan.inventory):
            require_space(path, plan.inventory)
            # Another process may complete the cache at any moment.
            with suppress(CacheCompletedError):
                filled = self._fill_once(path, plan, filled)
        return filled

    def image_input(self, path: Path, plan: Plan) -> ImageInput:
        """Return the images of the run; those of a cache that is added to must be the ones that it was made from."""
        request, spec = self.inputs.request, plan.spec
        known, resize = _known_cache(path), spec.backbone.resize
        return ImageInput(
            self.inputs.source,
            with_resize(self.loaded.backbone.transform, resize),
            self.loaded.backbone.spec.image_size,
            default_workers() if request.workers is None else request.workers,
            self.loaded.device,
            spec.backbone.upright,
            request.on_error == SKIP,
            self.reporter.message,
            {} if known is None else _known_content(known),
            {}
            if known is None or not spec.backbone.upright
            else {name: known.manifest.orientations(name) for name in known.inventory.splits},
            view_inputs(self.loaded.backbone, resize, plan.inventory),
        )

    def forward(self) -> Forward:
        """Return the forward pass of the run."""
        return Forward(
            self.loaded.backbone, self.loaded.device, self.inputs.request.compile, self.reporter.message
        )

    def _fill_once(self, path: Path, plan: Plan, before: Filled) -> Filled:
        """Write all blocks of one plan and complete the cache; add the work to `before`."""
        say, clipping = self.reporter.message, Clipping()
        with CacheWriter(
            path, plan, projection=self._projection(), fit=self._fit(path, plan), adopt=True, say=say
        ) as writer:
            self.lookup.record(path)
            for text in plan_messages(writer, plan, self.inputs.request.batch_size):
                say(text)
            started = time.perf_counter()
            reuse = self.reuse(writer.plan)
            images = replace(self.image_input(writer.directory, writer.plan), reuse=reuse)
            try:
                samples = self._run_blocks(writer, images, clipping)
            except KeyboardInterrupt:
                raise interrupted(writer) from None
            finally:
                reuse.records().keep(writer.plan.spec.key)
            seconds = time.perf_counter() - started
            self._complete(writer, samples, seconds, images, clipping)
            notes = [*images.observed.notes(images.upright), *clipping.notes()]
            return Filled(
                before.samples + samples,
                before.seconds + seconds,
                (*before.notes, *notes),
                before.reused + reuse.count,
            )

    def reuse(self, plan: Plan) -> Reuse:
        """Find the rows of other caches that can stand in the cache of `plan`, and the states of the dataset's files."""
        say, arrays = self.reporter.message, token_arrays(plan.inventory)
        caches = [cache for cache in self.reusable if mismatch(cache, plan.spec, plan.inventory) is None]
        if caches and not alike_in_every_split(plan.inventory):
            say("note: splits lack different features, so no rows of other caches are taken over")
            caches = []
        rows = ReusableRows(caches, arrays, say) if caches and arrays else None
        records = [ContentRecords.load(cache.key) for cache in caches]
        fingerprints = self.inputs.source.row_fingerprints()
        reuse = Reuse.of(rows, fingerprints, records, arrays, say, upright=plan.spec.backbone.upright)
        reuse.announce()
        return reuse

    def _fit(self, path: Path, plan: Plan) -> ScaleFitter:
        # Compiling would take longer than the pass over the sample.
        forward = replace(self.forward(), compile=False)
        return ScaleFitter(lambda: self.image_input(path, plan), forward, plan, self.reporter)

    def _run_blocks(self, writer: CacheWriter, images: ImageInput, clipping: Clipping) -> int:
        """Extract until all blocks are committed, by this process or another; return the samples of this one."""
        samples = 0
        forward, device = self.forward(), self.loaded.device
        opened = forward.extractors(writer.plan, writer.scales, clipping)
        with one_line_device_errors(device), opened as extractors:
            while True:
                with self.reporter.progress("extracting", "images") as update:
                    samples += run_blocks(writer, images, extractors, update)
                if writer.pending():
                    self.reporter.message(
                        f"waiting for {len(writer.pending())} blocks that other processes extract"
                    )
                if not writer.wait():
                    return samples

    def _complete(
        self, writer: CacheWriter, samples: int, seconds: float, images: ImageInput, clipping: Clipping
    ) -> None:
        refuse_empty_splits(writer)
        backbone = writer.plan.spec.backbone
        preprocessing = preprocessing_text(backbone.preprocessing, backbone.image_size)
        summary = self.inputs.summary
        facts = RunFacts(
            command=self.command,
            started_at=self.started,
            samples=samples,
            seconds=seconds,
            dataset_summary=summary if preprocessing is None else f"{summary}; {preprocessing}",
            observed=images.observed.to_dict(),
            int8=clipping.to_dict(),
        )
        names, weights = self.inputs.names, self.loaded.backbone.loaded.weights_source
        document = provenance(writer, weights, self.loaded.device, names, facts)
        about = about_dataset(writer, self.inputs.source.citation)
        writer.finish(document, card(writer.plan, names, about))

    def _projection(self) -> npt.NDArray[np.float32] | None:
        matrix = self.loaded.backbone.projection
        return None if matrix is None else matrix.detach().float().cpu().contiguous().numpy()


def _known_cache(path: Path) -> Cache | None:
    """Return the complete cache at `path`, which is added to; None if there is none."""
    return open_cache(path) if (path / MANIFEST_FILE).exists() else None


def _known_content(cache: Cache) -> Mapping[str, npt.NDArray[np.uint8]]:
    """Return the content digests ``[N, 16]`` of a complete cache, by split; those splits that have some."""
    return {
        name: digests
        for name in cache.inventory.splits
        if (digests := cache[name].content_digests()) is not None
    }
