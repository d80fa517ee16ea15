"""Recompute some rows of a cache with the backbone: digests show damage, only this shows that the values are right."""

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
from featcache.extraction.labeling.request import LABELS
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
from featcache.recompute.rows import choose_batches
from featcache.recompute.stored_values import StoredArray
from featcache.store.errors import DatasetError
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.dtype_loss import LayerLoss, LossSum
from featcache.store.reading.reader import Cache
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
    batches = choose_batches(
        cache, request.samples, check_seed(request.seed, "--seed"), whole=request.dtype_loss
    )
    samples = sum(len(rows) for _, rows in batches)
    device = choose_device(request.device)
    reporter.message(f"recomputing {samples} samples with {model.explicit} on {device}")
    backbone = load_backbone(
        model,
        request.weights,
        None if request.weights is None else recorded_weight_set(cache),
        Preprocessing.of_spec(cache.spec.backbone, str(cache.directory)),
        trust_remote_code=request.trust_remote_code,
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
    compared = _Comparison(cache)
    others: list[str] = []
    for split, rows in batches:
        for name, fresh in forward(split, rows).items():
            compared.add(split, rows, name, fresh)
        others += _mismatched_samples(cache, source, split, rows)
    losses = compared.losses() if request.dtype_loss else []
    return Recomputation(samples, tolerance(cache.spec), compared.differences(), others, losses)


class _Forward:
    """The extraction's own forward pass, for rows anywhere in a split."""

    def __init__(self, cache: Cache, source: Source, backbone: Backbone, device: torch.device) -> None:
        self._source = source
        self._backbone = backbone
        resize = cache.spec.backbone.resize
        self._transform = with_resize(backbone.transform, resize)
        self._views = view_inputs(backbone, resize, cache.inventory)
        self._upright = takes_upright(cache)
        self._passes = view_passes(
            backbone,
            cache.inventory,
            # The stored type rounds later.
            lambda sized, wanted: FeatureExtractor(sized, device, cache.spec.precision, wanted, "float32"),
        )

    def __call__(self, split: str, rows: Sequence[int]) -> dict[str, Features]:
        """Return every array of the rows of one batch as ``[B, L, K, D]``."""
        samples: list[Sample] = [self._source.splits[split][row] for row in rows]
        batch = self._run(split, self._images(split, rows), samples)
        return {name: np.asarray(values, np.float32) for name, values in batch.items()}

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


class _Comparison:
    """Compares recomputed rows with the cache, batch by batch."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._largest: dict[tuple[str, str, str], tuple[float, float]] = {}
        self._losses: dict[str, LossSum] = {}

    def add(self, split: str, rows: Sequence[int], name: str, fresh: Features) -> None:
        """Compare one array of some rows, float32 ``[B, L, K, D]``."""
        view = self._cache[split].view(*parse_array_name(name), split_view(name)[0] or PLAIN_VIEW)
        layers = self._cache.inventory.splits[split].arrays[name].layers
        stored = StoredArray.read(view, rows, layers)
        values, difference = stored.values, stored.distance(fresh)
        lengths = np.maximum(np.linalg.norm(values, axis=-1), np.linalg.norm(fresh, axis=-1))
        relative = np.linalg.norm(difference, axis=-1) / np.maximum(lengths, np.finfo(np.float32).tiny)
        for index, layer in enumerate(layers):
            # NaN would pass for small: it compares as False with everything.
            largest = [
                float(np.nan_to_num(part[:, index], nan=np.inf).max()) for part in (difference, relative)
            ]
            before = self._largest.get((split, name, layer), (0.0, 0.0))
            self._largest[split, name, layer] = (max(before[0], largest[0]), max(before[1], largest[1]))
        sums = self._losses.setdefault(name, LossSum(view.tokens))
        sums.add(layers, fresh, values, *stored.rounded(fresh))

    def differences(self) -> list[LayerDifference]:
        """Return the differences of every layer."""
        # Split by split, and array by array, in whatever order the batches came.
        ordered = sorted(self._largest.items(), key=lambda item: self._order.index(item[0][:2]))
        return [LayerDifference(*place, *largest) for place, largest in ordered]

    def losses(self) -> list[LayerLoss]:
        """Return the loss of the stored type in every layer and token kind."""
        return [loss for name, sums in self._losses.items() for loss in sums.losses(name)]

    @property
    def _order(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys(place[:2] for place in self._largest))


def _mismatched_samples(cache: Cache, source: Source, split: str, rows: Sequence[int]) -> Iterator[str]:
    ids = cache[split].sample_ids()
    # Labels that were attached later are not those of the dataset.
    labeled = cache.inventory.targets.labeled and LABELS not in cache.spec.dataset
    labels = cache[split].labels() if labeled else None
    for row in rows:
        sample = source.splits[split][row]
        if ids[row] != sample.id and labels is None:
            yield f"{split} row {row}: {ids[row]!r}, must be {sample.id!r}"
        elif labels is not None and (ids[row] != sample.id or not np.array_equal(labels[row], sample.label)):
            yield f"{split} row {row}: {ids[row]!r} of class {labels[row]}, must be {sample.id!r} of class {sample.label}"
