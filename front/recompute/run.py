"""Recompute some rows of a cache with the backbone: digests show damage, only this shows that the values are right."""

import random
from collections.abc import Iterator, Sequence
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
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.models.names import resolve_model
from featcache.extraction.sources.base import Sample, Source
from featcache.recompute.inputs import (
    check_inventory,
    open_recorded_source,
    recorded_model,
    recorded_weight_set,
    refuse_difference,
)
from featcache.recompute.outcome import LayerDifference, Recomputation, tolerance
from featcache.recompute.request import RecomputeRequest
from featcache.store.errors import DatasetError, RequestError
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import Cache, as_float32
from featcache.store.seeds import check_seed
from featcache.store.token_groups import parse_array_name

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
        trust_remote_code=request.trust_remote_code,
    )
    backbone.module.to(device)
    resize = cache.spec.backbone.resize
    spec = backbone.spec.resized_by(resize) if resize in versions_of(backbone.transform) else backbone.spec
    refuse_difference("the backbone", asdict(cache.spec.backbone), asdict(spec))
    check_inventory(cache, source)
    forward = _Forward(cache, source, backbone, device)
    differences = [d for split in rows for d in _differences(cache, split, rows[split], forward)]
    others = [text for split in rows for text in _mismatched_samples(cache, source, split, rows[split])]
    return Recomputation(sum(map(len, rows.values())), tolerance(cache.spec), differences, others)


class _Forward:
    """The extraction's own forward pass, for rows anywhere in a split."""

    def __init__(self, cache: Cache, source: Source, backbone: Backbone, device: torch.device) -> None:
        self._source = source
        self._backbone = backbone
        self._transform = with_resize(backbone.transform, cache.spec.backbone.resize)
        self._batch_size = cache.manifest.batch_size
        self._dtype = cache.spec.dtype
        self._extractors = {
            split.name: FeatureExtractor(
                backbone,
                device,
                cache.spec.precision,
                [array for array in split.arrays.values() if array.layers],
                self._dtype,
            )
            for split in cache.inventory.splits.values()
        }

    def __call__(self, split: str, rows: Sequence[int]) -> dict[str, Features]:
        """Return every array of the rows as ``[B, L, K, D]``, rounded to the stored type."""
        parts = []
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            samples: list[Sample] = [self._source.splits[split][row] for row in batch]
            parts.append(self._extractors[split](self._images(split, batch), samples))
        return {
            name: as_float32(np.concatenate([part[name] for part in parts]), self._dtype) for name in parts[0]
        }

    def _images(self, split: str, rows: Sequence[int]) -> torch.Tensor:
        singles = [Rows(split, row, row + 1) for row in rows]
        size = self._backbone.spec.input_size
        batches = list(image_batches(self._source, self._transform, singles, 0, size))
        for _, message in (failure for batch in batches for failure in batch.failures):
            raise DatasetError(message)
        return torch.cat([normalized(batch, self._transform).images for batch in batches])


def _differences(
    cache: Cache, split: str, rows: Sequence[int], forward: _Forward
) -> Iterator[LayerDifference]:
    for name, fresh in forward(split, rows).items():
        tap, group = parse_array_name(name)
        reader = cache[split].view(tap, group)
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
    ids, labels = cache[split].sample_ids(), cache[split].labels()
    for row in rows:
        sample = source.splits[split][row]
        if ids[row] != sample.id or not np.array_equal(labels[row], sample.label):
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
