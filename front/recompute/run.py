"""Recompute some rows of a cache with the backbone: digests show damage, only this shows that the values are right."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch

from featcache.devices.choice import choose_device
from featcache.extraction.backbones import load_backbone
from featcache.extraction.backbones.base import Backbone
from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import image_batches
from featcache.extraction.decoding.prefetch import normalized
from featcache.extraction.decoding.preprocessing import versions_of, with_resize
from featcache.extraction.decoding.views import check_views, view_inputs
from featcache.extraction.forward_pass.bfloat16_weights import in_precision
from featcache.extraction.forward_pass.forward import FeatureExtractor, NotFiniteError, NumpyBatch
from featcache.extraction.forward_pass.view_passes import view_passes
from featcache.extraction.models.names import resolve_model
from featcache.extraction.models.preprocessing import Preprocessing
from featcache.extraction.running.look_ahead import joined
from featcache.extraction.sources.base import Sample, Source
from featcache.recompute.inputs import (
    check_inventory,
    open_recorded_source,
    recorded_model,
    recorded_weight_set,
    refuse_difference,
    takes_upright,
)
from featcache.recompute.outcome import LayerDifference, Recomputation, tolerance
from featcache.recompute.request import RecomputeRequest
from featcache.store.errors import DatasetError, RequestError
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import Cache, as_float32
from featcache.store.seeds import check_seed
from featcache.store.token_groups import parse_array_name, split_view
from featcache.store.views import PLAIN_VIEW

Features = npt.NDArray[np.float32]


def recompute(cache: Cache, request: RecomputeRequest, reporter: Reporter | None = None) -> Recomputation:
    """Run random valid rows through the backbone again and compare all cached layers.

    Raises:
        RequestError: the dataset or the weights are not those of the cache (the message says what differs), the cache
            holds no valid row, or its provenance does not tell the model.
        CacheError: its arrays do not fit its spec.
        DatasetError, BackboneError: as in an extraction.
    """
    reporter = reporter or Silent()
    model = resolve_model(request.model or recorded_model(cache))
    source = open_recorded_source(cache, request.dataset, request.data)
    rows = _choose_rows(cache, request.samples, check_seed(request.seed, "--seed"))
    device = choose_device(request.device)
    reporter.message(f"recomputing {sum(map(len, rows.values()))} samples with {model.explicit} on {device}")
    backbone = load_backbone(
        model,
        request.weights,
        None if request.weights is None else recorded_weight_set(cache),
        Preprocessing.of_spec(cache.spec.backbone, str(cache.directory)),
    )
    backbone.module.to(device)
    resize = cache.spec.backbone.resize
    spec = backbone.spec.resized_by(resize) if resize in versions_of(backbone.transform) else backbone.spec
    spec = spec.with_upright(cache.spec.backbone.upright)
    refuse_difference("the backbone", asdict(cache.spec.backbone), asdict(spec))
    check_inventory(cache, source)
    check_views(tuple(cache.inventory.views.values()), backbone)
    backbone = in_precision(backbone, cache.spec.precision)
    forward = _Forward(cache, source, backbone, device)
    differences = [d for split in rows for d in _differences(cache, split, rows[split], forward)]
    others = [text for split in rows for text in _mismatched_samples(cache, source, split, rows[split])]
    return Recomputation(sum(map(len, rows.values())), tolerance(cache.spec), differences, others)


class _Forward:
    """The extraction's own forward pass, for rows anywhere in a split."""

    def __init__(self, cache: Cache, source: Source, backbone: Backbone, device: torch.device) -> None:
        self._source = source
        self._backbone = backbone
        resize = cache.spec.backbone.resize
        self._transform = with_resize(backbone.transform, resize)
        self._views = view_inputs(backbone, resize, cache.inventory)
        self._upright = takes_upright(cache)
        self._batch_size = cache.manifest.batch_size
        self._dtype = cache.spec.dtype
        self._passes = view_passes(
            backbone,
            cache.inventory,
            lambda sized, wanted: FeatureExtractor(sized, device, cache.spec.precision, wanted, self._dtype),
        )

    def __call__(self, split: str, rows: Sequence[int]) -> dict[str, Features]:
        """Return every array of the rows as ``[B, L, K, D]``, rounded to the stored type."""
        parts = []
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            samples: list[Sample] = [self._source.splits[split][row] for row in batch]
            parts.append(self._run(split, self._images(split, batch), samples))
        return {
            name: as_float32(np.concatenate([part[name] for part in parts]), self._dtype) for name in parts[0]
        }

    def _run(self, split: str, images: Mapping[str, torch.Tensor], samples: Sequence[Sample]) -> NumpyBatch:
        passes = self._passes[split]
        try:
            return passes.start(images)()
        except NotFiniteError:
            raise passes.explain(images, samples) from None

    def _images(self, split: str, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the images of every view, by its name."""
        singles = [Rows(split, row, row + 1) for row in rows]
        size = self._backbone.spec.image_size
        batches = list(
            image_batches(
                self._source, self._transform, singles, 0, size, upright=self._upright, views=self._views
            )
        )
        for _, message in (failure for batch in batches for failure in batch.failures):
            raise DatasetError(message)
        whole = joined([normalized(batch, self._transform) for batch in batches])
        return whole.by_view


def _differences(
    cache: Cache, split: str, rows: Sequence[int], forward: _Forward
) -> Iterator[LayerDifference]:
    for name, fresh in forward(split, rows).items():
        tap, group = parse_array_name(name)
        reader = cache[split].view(tap, group, split_view(name)[0] or PLAIN_VIEW)
        layers = cache.inventory.splits[split].arrays[name].layers
        stored = as_float32(reader.gather(rows, layers, reader.tokens), cache.spec.dtype)
        difference = np.abs(stored - fresh)
        lengths = np.maximum(np.linalg.norm(stored, axis=-1), np.linalg.norm(fresh, axis=-1))
        relative = np.linalg.norm(difference, axis=-1) / np.maximum(lengths, np.finfo(np.float32).tiny)
        for index, layer in enumerate(layers):
            # NaN would pass for small: it compares as False with everything.
            absolute, part = (np.nan_to_num(d[:, index], nan=np.inf).max() for d in (difference, relative))
            yield LayerDifference(split, name, layer, float(absolute), float(part))


def _mismatched_samples(cache: Cache, source: Source, split: str, rows: Sequence[int]) -> Iterator[str]:
    ids = cache[split].sample_ids()
    labels = cache[split].labels() if cache.inventory.targets.labeled else None
    for row in rows:
        sample = source.splits[split][row]
        if ids[row] != sample.id and labels is None:
            yield f"{split} row {row}: {ids[row]!r}, must be {sample.id!r}"
        elif labels is not None and (ids[row] != sample.id or not np.array_equal(labels[row], sample.label)):
            yield f"{split} row {row}: {ids[row]!r} of class {labels[row]}, must be {sample.id!r} of class {sample.label}"


def _choose_rows(cache: Cache, samples: int, seed: int) -> dict[str, list[int]]:
    """Return the random valid rows of all splits, in order."""
    valid = [
        (split, int(row)) for split in cache.inventory.splits for row in np.flatnonzero(cache[split].valid())
    ]
    if not valid:
        raise RequestError(f"{cache.directory} holds no valid row to recompute; finish the extraction first")
    chosen = sorted(random.Random(seed).sample(valid, min(samples, len(valid))))
    splits = dict.fromkeys(split for split, _ in chosen)
    return {split: [row for name, row in chosen if name == split] for split in splits}
