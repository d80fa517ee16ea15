"""The extraction itself: images through the backbone once, pooled tokens of all layers into committed blocks.

Worker processes decode, the backbone runs (on a GPU as this thread tells it, on a CPU in threads of its own), and other
threads collect the features, hash, write and commit: nothing but the forward pass may hold the run up. What is in flight
is bounded, so memory does not grow with the dataset.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.decoding.first_images import watched
from featcache.extraction.decoding.images import image_batches
from featcache.extraction.decoding.observed import Observed
from featcache.extraction.decoding.prefetch import to_device
from featcache.extraction.decoding.views import Transform, ViewInput
from featcache.extraction.forward_pass.view_passes import ViewPasses
from featcache.extraction.reuse.division import Division, Reuse
from featcache.extraction.running.look_ahead import ClaimedBatches
from featcache.extraction.running.writing import Job, Writing
from featcache.extraction.sources.base import Source
from featcache.store.errors import DatasetError, UnavailableError
from featcache.store.progress import Update
from featcache.store.writing.writer import CacheWriter


@dataclass(frozen=True)
class ImageInput:
    """Where images come from, and how."""

    source: Source
    transform: Transform
    """The model's own preprocessing."""
    input_size: int | tuple[int, int]
    """Height and width of a preprocessed image, or the side of a square, pixels."""
    workers: int
    """Processes that decode images; 0 decodes in this one."""
    device: torch.device
    """Where the backbone runs."""
    upright: bool = False
    """Turn images by their EXIF orientation first."""
    skip_failures: bool = False
    """Go on without an image that does not decode, rather than stop."""
    say: Callable[[str], None] = lambda text: None
    """Receives a message on every image that is skipped, and a warning if the first images look wrong."""
    known_content: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """By split, the content digests ``[N, 16]`` of a cache that is added to: its images must be the same ones."""
    known_orientations: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """By split, the EXIF orientations ``[N]`` of that cache, if it turned images."""
    views: Mapping[str, tuple[ViewInput, ...]] | None = None
    """The views that every split needs; None for the plain one alone."""
    observed: Observed = field(default_factory=Observed)
    """Counts the facts found while decoding the images of this run."""
    reuse: Reuse | None = None
    """Rows of other caches that are taken over instead of being computed."""

    def batches(self, rows: Iterable[Rows]) -> Iterator[ImageBatch]:
        """The images of `rows` on the device, in order."""
        gpu = self.device if self.device.type == "cuda" else None
        batches = image_batches(
            self.source,
            self.transform,
            rows,
            self.workers,
            self.input_size,
            gpu,
            self.upright,
            self.views,
        )
        looked_at = watched(batches, self.source.pixels.pixel_range, self.say)
        return to_device(looked_at, self.device, self.transform)

    def refuse_or_skip(self, batch: ImageBatch) -> None:
        """Stop at an image that failed, or say that it is left out.

        Raises:
            UnavailableError: a file is gone or cannot be read; such an image is never skipped.
            DatasetError: one failed, and failures are not skipped.
        """
        if batch.unavailable:
            raise UnavailableError(batch.unavailable[0])
        for _, message in batch.failures:
            if not self.skip_failures:
                raise DatasetError(
                    f"{message}; leave it out with --on-error skip, which goes on after what is committed, or mend or "
                    "remove it, which makes another dataset and starts anew"
                )
            self.say(f"skipped: {message}")

    def divide(self, rows: Rows, batch: ImageBatch) -> Division:
        """Return where the features of `rows` come from, of which `batch` holds the images that were decoded.

        Raises:
            DatasetError: an image is not the one that a record tells.
        """
        samples = self.source.splits[rows.split][rows.start : rows.stop]
        if self.reuse is None:
            return Division.whole(samples, batch)
        return self.reuse.divide(rows, samples, batch)

    def check_content(self, rows: Rows, division: Division) -> None:
        """Refuse images that are not those that the cache was made from.

        Raises:
            DatasetError: one is not.
        """
        known = self.known_content.get(rows.split)
        if known is None:
            return
        before = known[rows.start : rows.stop]
        changes = (before != division.content).any(1)
        if rows.split in self.known_orientations:
            orientations = self.known_orientations[rows.split][rows.start : rows.stop]
            changes |= orientations != division.orientations
        # A row that failed when the cache was made has zeros.
        changed = np.flatnonzero(changes & before.any(1))
        if changed.size:
            raise DatasetError(
                f"image {division.samples[int(changed[0])].id!r} is not the one that the cache was made from, so nothing can be added; "
                "remove the cache and extract it again"
            )


def run_blocks(
    writer: CacheWriter, images: ImageInput, extractors: Mapping[str, ViewPasses], update: Update
) -> int:
    """Extract and commit blocks until none is left that no other process is writing.

    Args:
        writer: the open writer of the cache.
        images: the images.
        extractors: the forward passes of every split.
        update: called with the samples done and in all, at the start and after every batch.

    Returns:
        The number of samples that this run extracted.

    Raises:
        DatasetError: an image does not decode; blocks that were committed stay.
        BackboneError: a value is not finite in the stored type.
    """
    claimed = ClaimedBatches(writer, images.workers, images.reuse.windows if images.reuse else None)
    total, extracted = writer.plan.inventory.num_samples, 0
    update(writer.committed_rows(), total)
    with Writing(writer, extractors, lambda done: update(done, total)) as writing:
        batches = claimed.joined(images.batches(claimed))
        try:
            for block, rows, batch in batches:
                images.refuse_or_skip(batch)
                images.observed.add(batch.facts.numpy())
                division = images.divide(rows, batch)
                images.check_content(rows, division)
                computed = division.batch
                features = extractors[rows.split].start(computed.by_view) if len(computed.images) else dict
                writing.put(Job(block, rows, division, features))
                extracted += len(division.samples)
        finally:
            # Ends the worker processes now: the traceback of an error would keep them.
            del batches
    return extracted
