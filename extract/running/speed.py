"""How fast an extraction would go: a few batches through decoding and the forward pass, and nothing is written."""

import random
import time
from collections import deque
from collections.abc import Callable, Mapping

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.forward_pass.forward import NotFiniteError, NumpyBatch
from featcache.extraction.forward_pass.view_passes import ViewPasses
from featcache.extraction.running.pipeline import ImageInput
from featcache.store.journal import Plan

TRIAL_S = 5.0
TRIAL_BATCHES = 64


def images_per_second(images: ImageInput, extractors: Mapping[str, ViewPasses], plan: Plan) -> float:
    """Run some batches from all over the largest split for a few seconds, the first ones without counting them.

    Raises:
        BackboneError: a value is not finite in the stored type.
    """
    split = max(plan.inventory.splits.values(), key=lambda split: split.num_samples)
    extractor = extractors[split.name]
    rows = _spread(split.name, split.num_samples, plan.batch_size)
    under_way: deque[tuple[Rows, ImageBatch, Callable[[], NumpyBatch]]] = deque()
    done: list[tuple[int, float]] = []

    def finish_one() -> None:
        part, batch, features = under_way.popleft()
        try:
            features()
        except NotFiniteError:
            samples = images.source.splits[part.split][part.start : part.stop]
            raise extractor.explain(batch.by_view, samples) from None
        done.append((len(batch.images), time.perf_counter()))

    tried, failures = 0, list[str]()
    started, warm_up = time.perf_counter(), extractor.at_once
    for part, batch in zip(rows, images.batches(rows), strict=False):
        tried += len(batch.images)
        failures += [message for _, message in batch.failures]
        under_way.append((part, batch, extractor.start(batch.by_view)))
        while len(under_way) > extractor.at_once:
            finish_one()
        # Passes side by side end side by side.
        rounds = len(done) / extractor.at_once
        if rounds >= 2 and rounds.is_integer() and time.perf_counter() - started > TRIAL_S:
            break
    else:
        while under_way:
            finish_one()
    extractor.stop()
    if failures:
        images.say(f"note: {len(failures)} of {tried} images that were tried would fail: {failures[0]}")
    counted = done[warm_up:] if len(done) > warm_up else done
    since = done[warm_up - 1][1] if len(done) > warm_up else started
    return sum(size for size, _ in counted) / (counted[-1][1] - since)


def _spread(split: str, num_samples: int, batch_size: int) -> list[Rows]:
    """Batches from all over a split, in random order: images of one class may be larger than those of another."""
    starts = list(range(0, num_samples, batch_size))
    chosen = random.Random(0).sample(starts, min(TRIAL_BATCHES, len(starts)))
    return [Rows(split, start, min(start + batch_size, num_samples)) for start in chosen]
