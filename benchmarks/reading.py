"""What reading a cache costs, against the fastest that numpy can do, and against zarr-python.

The cache: 16,384 rows of 12 layers, 2 tokens and 384 channels (a ViT-S) in float16, 302 MB.
"""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import zarr
from timing import RUNS, Document, side_by_side

from featcache.store.machine import usable_cpus
from featcache.store.reading.reader import open_cache
from featcache.store.reading.split import SplitReader
from support.caches import make_plan
from support.sparse import write_sparse_cache

LAYERS, KINDS, WIDTH = 12, 2, 384
LAYER_NAMES = [str(layer) for layer in range(LAYERS)]
ROW_BYTES = LAYERS * KINDS * WIDTH * 2


@dataclass(frozen=True)
class Size:
    """Rows of the caches that are read; with fewer rows the figures say nothing."""

    rows: int
    streamed_rows: int
    """Rows of the cache that is larger than what memory should hold."""
    streamed_budget: int
    """Bytes of memory for streaming it."""
    opened_rows: int
    """Train rows of the cache that is only opened."""
    batch: int
    """Rows that are gathered at once."""
    streamed_batch: int
    """Rows of a batch where memory is counted."""
    runs: int | None
    """Runs of every comparison; None for the usual number of each."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tokens."""
        return self.rows * ROW_BYTES


FULL = Size(16_384, 98_304, 2**28, 1_281_167, 2048, 256, None)
TOY = Size(2048, 4096, 2**24, 4096, 128, 64, 1)


def bench_reading(cache: Path, scratch: Path, size: Size) -> Document:
    """All rows of the table; `cache` holds the arrays described above in its split train."""
    plain = scratch / "plain.npy"
    tokens = open_cache(cache)["train"].tokens
    np.save(plain, open_cache(cache)["train"].load(LAYER_NAMES, tokens).reshape(size.rows, -1))
    return {
        "warm": _warm(cache, open_cache(cache)["train"], np.load(plain), size),
        # Opened anew: pages that are mapped cannot be evicted.
        "cold": _cold(cache, open_cache(cache)["train"], plain, size),
        "anonymous memory": _memory(cache, scratch, size),
        "opening": _opening(scratch / "large", size),
    }


def _warm(cache: Path, split: SplitReader, plain: np.ndarray, size: Size) -> Document:
    rows, num_bytes, batch = size.rows, size.num_bytes, size.batch
    group = zarr.open_group(cache / "features.zarr", mode="r")["train"]
    rng, tokens = np.random.default_rng(0), split.tokens
    one_layer = np.empty((rows, 1, KINDS, WIDTH), "f2")
    out = np.empty((batch, LAYERS, KINDS, WIDTH), "f2")
    files = sorted((cache / "features.zarr" / "train" / "norm2").glob("c.*.5.0.0"))

    def gather() -> None:
        split.gather(rng.permutation(rows)[:batch], LAYER_NAMES, tokens, out=out)

    def epoch(memory: int) -> Callable[[], object]:
        return lambda: [
            len(rows) for rows, _ in split.batches(batch, LAYER_NAMES, tokens, 0, memory, out=out)
        ]

    def take_epoch() -> None:
        order = rng.permutation(rows)
        for start in range(0, rows, batch):
            _take(plain, order[start : start + batch], out)

    def load() -> None:
        split.load(["5"], tokens, out=one_layer)

    return {
        "one layer of all rows, against readinto of the same files": side_by_side(
            load, lambda: _read_into(files, one_layer), size.runs or 15
        ),
        "one layer of all rows, against zarr-python": side_by_side(
            load, lambda: group["norm2"][:, 5:6], size.runs or RUNS
        ),
        "2,048 random rows of 12 layers, against np.take from one array on as many threads": side_by_side(
            gather, lambda: _take(plain, rng.permutation(rows)[:batch], out), size.runs or 31
        ),
        "2,048 random rows of 12 layers, against zarr-python": side_by_side(
            gather, lambda: group["norm2"].oindex[rng.permutation(rows)[:batch]], size.runs or RUNS
        ),
        "an epoch of shuffled batches, against the same np.take": side_by_side(
            epoch(3 * num_bytes), take_epoch, size.runs or 15
        ),
        "the same, with a budget of a quarter of the data": side_by_side(
            epoch(num_bytes // 4 + batch * ROW_BYTES), take_epoch, size.runs or 15
        ),
    }


def _cold(cache: Path, split: SplitReader, plain: Path, size: Size) -> Document:
    num_rows, num_bytes, batch = size.rows, size.num_bytes, size.batch
    files = [path for path in (cache / "features.zarr" / "train").rglob("c.*") if path.is_file()]
    if not evict([*files, plain]):
        return {"skipped": "this machine does not evict files from the page cache"}
    rng, tokens = np.random.default_rng(0), split.tokens

    def compare(count: int, other: Callable[[np.ndarray], object]) -> Document:
        def ours() -> None:
            # A copy that has no maps yet.
            pickle.loads(pickle.dumps(split)).gather(rng.permutation(num_rows)[:count], LAYER_NAMES, tokens)

        return side_by_side(
            ours,
            lambda: other(rng.permutation(num_rows)[:count]),
            size.runs or RUNS,
            before=lambda: evict([*files, plain]),
        )

    def chunk_maps(rows: np.ndarray) -> None:
        size = split.inventory.block_rows
        for block in np.unique(rows // size):
            inside = rows[rows // size == block] % size
            for layer in LAYER_NAMES:
                path = cache / "features.zarr" / "train" / "norm2" / f"c.{block}.{layer}.0.0"
                np.memmap(path, "<f2", "r", shape=(size, KINDS, WIDTH))[inside]

    def one_map(rows: np.ndarray) -> None:
        np.load(plain, mmap_mode="r")[rows]

    def epoch() -> None:
        for _ in pickle.loads(pickle.dumps(split)).batches(batch, LAYER_NAMES, tokens, 0, num_bytes):
            pass

    def read_all() -> None:
        for path in files:
            path.read_bytes()

    return {
        "128 random rows of 12 layers, against np.memmap of the same files": compare(128, chunk_maps),
        "128 random rows of 12 layers, against np.memmap of one row-major file": compare(128, one_map),
        "2,048 random rows (an eighth), against np.memmap of the same files": compare(batch, chunk_maps),
        "2,048 random rows (an eighth), against np.memmap of one row-major file": compare(batch, one_map),
        "an epoch of shuffled batches, against reading all files in order": side_by_side(
            epoch, read_all, size.runs or RUNS, before=lambda: evict(files)
        ),
    }


# Streams an epoch, and prints by how many bytes the anonymous memory of the process grew at most.
_STREAM = """
import sys
from featcache.store.reading.reader import open_cache
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
split = open_cache(sys.argv[1])["train"]
before = most = anonymous()
for _ in split.batches(int(sys.argv[4]), split.layers, split.tokens, 0, int(sys.argv[3]), method=sys.argv[2]):
    most = max(most, anonymous())
print(most - before)
"""


def _memory(cache: Path, folder: Path, size: Size) -> Document:
    """Growth of anonymous memory while streaming, on the benchmark's cache and on one of 2 GB (holes, so it costs no disk)."""
    if not Path("/proc/self/status").exists():
        return {"skipped": "only Linux tells anonymous memory apart"}
    layers = tuple(map(str, range(12)))
    plan = make_plan({"train": size.streamed_rows, "test": 128}, num_layers=12, width=384, batch_size=128)
    write_sparse_cache(folder / "streamed", plan, (*layers, "final"))
    grown: Document = {}
    for directory, budget in ((cache, size.num_bytes // 8), (folder / "streamed", size.streamed_budget)):
        for method in ("map", "read"):
            command = [
                sys.executable,
                "-c",
                _STREAM,
                str(directory),
                method,
                str(budget),
                str(size.streamed_batch),
            ]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            what = f"MB while streaming 8 times a budget of {budget // 10**6} MB, method={method}"
            grown[what] = round(int(result.stdout) / 1e6, 1)
    return grown


def _opening(directory: Path, size: Size) -> Document:
    plan = make_plan({"train": size.opened_rows, "test": 50_000}, num_layers=24, width=1024, batch_size=128)
    write_sparse_cache(directory, plan)
    seconds = []
    for _ in range(size.runs or 9):
        started = time.perf_counter()
        open_cache(directory)["train"]
        seconds.append(time.perf_counter() - started)
    what = f"seconds to open a cache of {size.opened_rows:,} rows x 25 layers"
    return {what: round(median(seconds), 4), "runs": len(seconds)}


def _take(plain: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    threads = usable_cpus()
    flat = out[: len(rows)].reshape(len(rows), -1)
    edges = np.linspace(0, len(rows), threads + 1).astype(int).tolist()

    def part(number: int) -> None:
        here = slice(edges[number], edges[number + 1])
        np.take(plain, rows[here], axis=0, out=flat[here], mode="clip")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))


def _read_into(files: list[Path], out: np.ndarray) -> None:
    view, position = memoryview(out).cast("B"), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            position += file.readinto(view[position:])


def evict(files: list[Path]) -> bool:
    """Drop files from the page cache, and say whether that worked (for the first page of each)."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return not any(map(_in_memory, files))


def _in_memory(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT) > 0
    except OSError:  # it would have to wait for the disk
        return False
    finally:
        os.close(descriptor)
