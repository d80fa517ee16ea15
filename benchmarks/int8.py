"""What reading int8 costs: batches of floats out of an int8 cache, against those out of the float16 cache that it was converted from.

The caches have 16,384 rows of 12 layers, 2 tokens and 384 channels (a ViT-S): 302 MB as float16, 151 MB as int8.
"""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import RUNS, Document, side_by_side

from featcache.devices.int8_kernel import torch_kernel
from featcache.store.convert.requantize import ConvertRequest, convert
from featcache.store.machine import usable_cpus
from featcache.store.reading.decoding import numpy_kernel, use_kernel
from featcache.store.reading.reader import open_cache
from featcache.store.reading.split import SplitReader
from reading import LAYER_NAMES, evict
from support.caches import cache_folder, make_content, make_plan, write_cache

ROWS, BATCH = 16_384, 2048
TOY_ROWS, TOY_BATCH = 2048, 128


def bench_int8(toy: bool = False) -> Document:
    """All rows: with torch's kernel, which probes and training loops use, and with numpy's, which a program without torch uses."""
    rows, batch = (TOY_ROWS, TOY_BATCH) if toy else (ROWS, BATCH)
    runs = 1 if toy else None
    with tempfile.TemporaryDirectory() as name:
        plan = make_plan({"train": rows, "test": 128}, num_layers=12, width=384, batch_size=128)
        half = write_cache(cache_folder(Path(name), plan), plan, make_content(plan)).directory
        int8 = convert(open_cache(half), ConvertRequest(), [Path(name)]).path
        document: Document = {"threads": usable_cpus()}
        for title, kernel in (("torch", torch_kernel), ("numpy", numpy_kernel)):
            use_kernel(kernel)
            document[f"warm, {title}"] = _warm(int8, half, rows, batch, runs)
            document[f"cold, {title}"] = _cold(int8, half, rows, batch, runs)
        return document


def _warm(int8: Path, half: Path, num_rows: int, batch: int, runs: int | None) -> Document:
    splits = [open_cache(path)["train"] for path in (int8, half)]
    document: Document = {}
    for dtype in ("float16", "float32"):
        out = np.empty((batch, len(LAYER_NAMES), 2, splits[0].width), dtype)
        gathers = [_gather(split, num_rows, batch, out) for split in splits]
        epochs = [_epoch(split, batch, dtype, out) for split in splits]
        document |= {
            f"2,048 random rows of 12 layers into {dtype}": side_by_side(*gathers, runs or 31),
            f"an epoch of shuffled batches into {dtype}": side_by_side(*epochs, runs or 15),
        }
    tensors = [_epoch(split, batch, None, None, as_float32=True) for split in splits]
    document["an epoch of batches as float32 tensors, as training takes them"] = side_by_side(
        *tensors, runs or 15
    )
    return document


def _cold(int8: Path, half: Path, num_rows: int, batch: int, runs: int | None) -> Document:
    files = [
        path for cache in (int8, half) for path in (cache / "features.zarr").rglob("c.*") if path.is_file()
    ]
    if not evict(files):
        return {"skipped": "this machine does not evict files from the page cache"}
    splits = [open_cache(path)["train"] for path in (int8, half)]

    def gather(split: SplitReader) -> Callable[[], object]:
        # A copy has no maps yet: pages that are mapped cannot be evicted.
        return lambda: _gather(pickle.loads(pickle.dumps(split)), num_rows, batch, None)()

    def epoch(split: SplitReader) -> Callable[[], object]:
        return lambda: _epoch(pickle.loads(pickle.dumps(split)), batch, "float16", None)()

    def before() -> object:
        return evict(files)

    return {
        "2,048 random rows of 12 layers into float16": side_by_side(
            *map(gather, splits), runs or RUNS, before
        ),
        "an epoch of shuffled batches into float16": side_by_side(*map(epoch, splits), runs or RUNS, before),
    }


def _gather(split: SplitReader, num_rows: int, batch: int, out: np.ndarray | None) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    return lambda: split.gather(rng.permutation(num_rows)[:batch], LAYER_NAMES, split.tokens, out=out)


def _epoch(
    split: SplitReader, batch: int, dtype: str | None, out: np.ndarray | None, *, as_float32: bool = False
) -> Callable[[], object]:
    def run() -> None:
        batches = split.batches(batch, LAYER_NAMES, split.tokens, 0, 2**31, out=out, dtype=dtype)
        for _, features in batches:
            if as_float32:
                torch.from_numpy(features).float()

    return run
