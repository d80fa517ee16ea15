"""Fit the scales of int8 features before the first block: a pass over a sample of train."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.forward_pass.forward import NotFiniteError
from featcache.extraction.forward_pass.view_passes import ViewPasses
from featcache.extraction.running.look_ahead import joined
from featcache.extraction.running.pipeline import ImageInput
from featcache.extraction.sources.base import Sample
from featcache.store.arrays import ArrayInfo
from featcache.store.errors import DatasetError
from featcache.store.inventory import SPLITS, SplitInventory
from featcache.store.journal import Plan
from featcache.store.progress import Reporter
from featcache.store.quantization import RangeFit, Scales

SAMPLE_IMAGES = 512
"""Images that scales are fitted on; all of train where it has fewer."""
SAMPLE_SEED = 0
MAX_BATCH = 16
"""Most images of one pass: features of all layers come as float32 here, whichever of them are cached."""


@dataclass(frozen=True)
class ScaleFitter:
    """Fits the scales of arrays on the images of a run."""

    images: Callable[[], ImageInput]
    """Make the input, which counts facts of images: those of the sample are counted when they are extracted."""
    forward: Forward
    plan: Plan
    reporter: Reporter

    def __call__(self, arrays: Sequence[ArrayInfo]) -> dict[str, Scales]:
        """Return the scales of `arrays` by name, of all layers of their axis, so that a layer can be added later.

        Raises:
            DatasetError: no image of the sample decodes, or one does not and failures are not skipped.
            BackboneError: the backbone gives values that are not finite.
        """
        images = self.images()
        split = SPLITS[0] if SPLITS[0] in images.source.splits else next(iter(images.source.splits))
        rows = sample_rows(len(images.source.splits[split]))
        self.reporter.message(f"fitting the scales of int8 on {len(rows)} images of {split}")
        whole = {array.name: replace(array, layers=array.layer_axis) for array in arrays}
        ranges = {name: RangeFit(array) for name, array in whole.items()}
        plan = _plan_of(self.plan, SplitInventory(split, len(rows), arrays[0].block_rows, whole))
        fitted = 0
        with (
            self.forward.extractors(plan) as extractors,
            self.reporter.progress("fitting", "images") as update,
        ):
            for samples, batch in self._batches(images, split, rows):
                if batch.unavailable or not images.skip_failures:
                    images.refuse_or_skip(
                        batch
                    )  # those that are skipped are reported when they are extracted
                decoded = np.setdiff1d(np.arange(len(samples)), [row for row, _ in batch.failures])
                for name, values in _features(extractors[split], batch, samples).items():
                    ranges[name].add(values[decoded])
                fitted += len(decoded)
                update(fitted, len(rows))
        if not fitted:
            raise DatasetError(
                f"none of {len(rows)} images of {split} decodes, so int8 has nothing to be fitted on"
            )
        return {name: fit.scales() for name, fit in ranges.items()}

    def _batches(
        self, images: ImageInput, split: str, rows: Sequence[int]
    ) -> Iterator[tuple[list[Sample], ImageBatch]]:
        singles = images.batches(Rows(split, row, row + 1) for row in rows)
        size = min(self.plan.batch_size, MAX_BATCH)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield [images.source.splits[split][row] for row in part], joined(list(islice(singles, len(part))))


def sample_rows(num_samples: int) -> list[int]:
    """Return the rows of a split of `num_samples` rows that scales are fitted on, in order."""
    count = min(SAMPLE_IMAGES, num_samples)
    return sorted(random.Random(SAMPLE_SEED).sample(range(num_samples), count))


def _features(
    extractor: ViewPasses, batch: ImageBatch, samples: Sequence[Sample]
) -> dict[str, np.typing.NDArray[np.float32]]:
    try:
        return {
            name: np.asarray(values, np.float32) for name, values in extractor.start(batch.by_view)().items()
        }
    except NotFiniteError:
        raise extractor.explain(batch.by_view, samples) from None


def _plan_of(plan: Plan, split: SplitInventory) -> Plan:
    return replace(plan, inventory=replace(plan.inventory, splits={split.name: split}))
