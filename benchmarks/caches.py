"""What the store costs: reading, writing and verifying a cache, and commands that need no torch."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from timing import RUNS, Document, side_by_side

from featcache.store.checking.verify import verify
from featcache.store.machine import usable_cpus
from reading import FULL, TOY, bench_reading
from support.caches import make_content, make_plan, write_cache
from support.many import make_many


def bench_store(toy: bool = False) -> Document:
    """All rows of the store."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            **bench_files(folder, toy),
            "verify, warm, against hashlib.sha256 of bytes in memory": bench_verify(folder, toy),
            "seconds to answer": bench_start(folder, toy),
        }


def bench_files(folder: Path, toy: bool) -> Document:
    """Reading and writing 16,384 rows of 12 layers of 384 channels (a ViT-S), 327 MB."""
    size = TOY if toy else FULL
    plan = make_plan({"train": size.rows, "test": 128}, num_layers=12, width=384, batch_size=128)
    content = make_content(plan)
    cache = write_cache(folder / "cache", plan, content)
    features = cache.directory / "features.zarr"
    files = [(features / path).read_bytes() for record in cache.manifest.blocks for path in record.files]
    numbers = iter(range(10**6))
    return {
        **bench_reading(folder / "cache", folder, size),
        "writing with fsync and digests, against plain files with fsync": side_by_side(
            lambda: write_cache(folder / f"cache-{next(numbers)}", plan, content),
            lambda: _write_plain(folder / f"plain-{next(numbers)}", files),
            size.runs or RUNS,
        ),
    }


def _write_plain(folder: Path, files: list[bytes]) -> None:
    folder.mkdir()
    for number, data in enumerate(files):
        with (folder / str(number)).open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())


def bench_verify(folder: Path, toy: bool) -> Document:
    """`featcache verify` of 24,576 rows of 12 layers of 384 channels (492 MB), against hashlib over the same bytes in memory."""
    plan = make_plan({"train": 512 if toy else 24_576, "test": 128}, num_layers=12, width=384, batch_size=128)
    cache = write_cache(folder / "verified", plan, make_content(plan))
    paths = [path for record in cache.manifest.blocks for path in record.files]
    contents = [(cache.directory / "features.zarr" / path).read_bytes() for path in paths]

    def hash_all() -> None:
        with ThreadPoolExecutor(usable_cpus()) as pool:
            list(pool.map(lambda data: hashlib.sha256(data).hexdigest(), contents))

    def check() -> None:
        assert verify(cache.directory).intact

    result = side_by_side(check, hash_all, 1 if toy else 5)
    return {**result, "megabytes": sum(map(len, contents)) // 10**6, "threads": usable_cpus()}


def bench_start(folder: Path, toy: bool) -> Document:
    """Seconds of whole commands that need no torch, median."""
    command = [str(Path(sys.executable).parent / "featcache")]
    results: Document = {}
    make_many(folder / "many", 10 if toy else 1000, num_layers=24, samples=50_000)
    # An empty root: the user's own caches have no part in this.
    for what, name, root in (
        ("featcache ls", "ls", os.devnull),
        ("featcache --help", "--help", os.devnull),
        ("featcache ls of 1,000 caches", "ls", str(folder / "many")),
    ):
        seconds = []
        for _ in range(1 if toy else 9):
            started = time.perf_counter()
            environment = {**os.environ, "FEATCACHE_ROOT": root}
            subprocess.run([*command, name], check=True, capture_output=True, env=environment)
            seconds.append(time.perf_counter() - started)
        results[what] = round(median(seconds), 3)
    return results
