"""Find the model and the dataset that a cache was made from, and check them against its spec."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from featcache.extraction.cached.freshness import REPLACED
from featcache.extraction.labeling.request import LABELS
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.pixels import RGB_CHANNELS
from featcache.store.errors import CacheError, RequestError
from featcache.store.layers import TOKEN_KINDS, layer_set
from featcache.store.reading.reader import Cache
from featcache.store.requests import AUTO
from featcache.store.targets import TARGET_KINDS

_TURNED, _APPLY = "exif_orientation", "apply"
"""Field of a dataset's identity, and its value, by which development versions recorded that images were turned upright."""


def takes_upright(cache: Cache) -> bool:
    """Return whether the images of a cache were turned upright by their EXIF orientation."""
    return cache.spec.backbone.upright or cache.spec.dataset.get(_TURNED) == _APPLY


def recorded_model(cache: Cache) -> str:
    """Return the explicit name of the model, as provenance has it.

    Raises:
        RequestError: provenance.json does not tell it.
    """
    names = cache.provenance.get("model_names")
    explicit = (
        [name for name in names if isinstance(name, str) and ":" in name] if isinstance(names, list) else []
    )
    if not explicit:
        raise RequestError(
            f"{cache.directory}: provenance.json does not tell the model; give it with --model"
        )
    from featcache.extraction.models.names import at_recorded_commit

    return at_recorded_commit(explicit[-1], cache.provenance.get("weights_source"))


def recorded_weight_set(cache: Cache) -> str | None:
    """Return the set of weights taken from a file that holds several; None if the file has a single set."""
    source = cache.provenance.get("weights_source")
    taken = source.get("taken") if isinstance(source, dict) else None
    return taken if isinstance(taken, str) and taken else None


def open_recorded_source(cache: Cache, dataset: str, data: Path | None = None) -> Source:
    """Return the dataset, split and cut as the cache's own identity says.

    Raises:
        RequestError: it is another dataset; the message says what differs.
        DatasetError: it cannot be used.
    """
    identity = cache.spec.dataset
    source = resolve_source(dataset, evolve(_recorded_options(identity), data=data))
    # The digests of the images show which ones were replaced; they are compared row by row. Attached labels are no part of a dataset.
    known = {name: value for name, value in identity.items() if name not in (REPLACED, _TURNED, LABELS)}
    refuse_difference(f"dataset {dataset}", known, source.identity)
    return source


def _recorded_options(identity: Mapping[str, Any]) -> DatasetOptions:
    """Return how the dataset of a cache was split, as far as its identity tells; the identity may come from anywhere."""
    seed, limit = identity.get("split_seed"), identity.get("limit")
    if isinstance(limit, list) and len(limit) == 2:
        limit, seed = limit
    pixel_range = identity.get("pixel_range")
    tests, target = identity.get("test_splits"), identity.get("targets")
    channels = identity.get("channels", RGB_CHANNELS)
    group_by, revision, train_split = (
        value if isinstance(value, str) else None
        for value in (identity.get("group_by"), identity.get("revision"), identity.get("train_split"))
    )
    return DatasetOptions(
        split_seed=seed if isinstance(seed, int) else 0,
        limit=limit if isinstance(limit, int) else None,
        test_splits=tuple(name for name in tests if isinstance(name, str)) if isinstance(tests, list) else (),
        resplit=identity.get("resplit") is True,
        target=target if target in TARGET_KINDS else AUTO,
        group_by=group_by,
        revision=revision,
        pixel_range=pixel_range if isinstance(pixel_range, str) else AUTO,
        train_split=train_split,
        channels=channels if isinstance(channels, int) else RGB_CHANNELS,
    )


def check_inventory(cache: Cache, source: Source) -> None:
    """Hold the arrays to the spec and the dataset: a foreign cache may say one thing and hold another.

    Raises:
        CacheError: number of rows, width, type or layers do not fit.
    """
    spec = cache.spec.backbone
    every = layer_set("every", spec.num_layers)
    for split in cache.inventory.splits:
        reader, rows = cache[split], len(source.splits.get(split, ()))
        for attribute, got, expected in (
            ("rows", reader.num_samples, rows),
            ("width", reader.width, spec.width),
            ("type", reader.stored_dtype, cache.spec.dtype),
            ("layers", [layer for layer in reader.layers if layer not in every], []),
            ("token kinds", [kind for kind in reader.tokens if kind not in TOKEN_KINDS], []),
        ):
            if got != expected:
                raise CacheError(
                    f"{cache.directory}: {attribute} of split {split!r} are {got}, must be {expected}; extract it again"
                )


def refuse_difference(noun: str, cached: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse what is not what the cache was made with.

    Raises:
        RequestError: with the first field that differs, and both values.
    """
    for name in dict.fromkeys((*cached, *given)):
        if cached.get(name) != given.get(name):
            raise RequestError(
                f"{noun} is not what the cache was made with: {name} is {given.get(name)!r}, "
                f"the cache has {cached.get(name)!r}; give the same --dataset, --model and --weights as for the extraction"
            )
