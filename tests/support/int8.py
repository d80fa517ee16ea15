"""Small int8 caches with known values, written through the real writer."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from featcache.store.quantization import RangeFit, Scales
from featcache.store.reading.reader import Cache, open_cache
from featcache.store.writing.writer import CacheWriter

from .caches import make_content, make_plan, write_blocks

PROVENANCE = {"model_names": ["tiny"], "dataset_names": ["made"], "completed_at": 1.0}


def float_content(plan, seed=0):
    """Values of an int8 plan before they are encoded: float32, of another scale and offset in every channel."""
    rng = np.random.default_rng(seed)
    content = make_content(plan, seed)
    for split in plan.inventory.splits.values():
        for array in split.arrays.values():
            if array.layers:
                spread, middle = rng.uniform(0.01, 3, (2, *array.shape[1:]))
                values = rng.standard_normal(array.shape) * spread + middle
                content[split.name][array.name] = values.astype(np.float32)
    return content


def fit_of(content, split="train"):
    """A function that fits scales of arrays to all rows of a split."""

    def fit(arrays):
        scales = {}
        for array in arrays:
            ranges = RangeFit(array)
            ranges.add(content[split][array.name])
            scales[array.name] = ranges.scales()
        return scales

    return fit


def encoded(plan, content, scales: dict[str, Scales], missing=()):
    """The content as a cache stores it; rows `missing` of train hold no features."""
    codes = {name: dict(columns) for name, columns in content.items()}
    for split in plan.inventory.splits.values():
        for name, array in split.arrays.items():
            if array.layers:
                codes[split.name][name] = scales[name].encode(content[split.name][name])[0]
                if split.name == "train":
                    codes["train"][name][list(missing)] = -128
    codes["train"]["valid"] = codes["train"]["valid"].copy()
    codes["train"]["valid"][list(missing)] = False
    return codes


def write_int8(
    directory: Path, samples=None, *, seed=0, missing=(), **shape
) -> tuple[Cache, dict, dict[str, Scales]]:
    """Write a complete int8 cache; returns it, the values that went in, and the scales."""
    plan = make_plan(samples, dtype="int8", **shape)
    content = float_content(plan, seed)
    with CacheWriter(directory, plan, fit=fit_of(content)) as writer:
        scales = dict(writer.scales)
        write_blocks(writer, encoded(plan, content, scales, missing))
        writer.finish(PROVENANCE, "# card\n")
    return open_cache(directory), content, scales


def without_layers(plan, layers):
    """The plan with some layers of norm2 alone."""
    wanted = {"norm2": tuple(layers), "final": ("final",)}
    return replace(plan, inventory=plan.inventory.select(plan.inventory.splits, wanted))
