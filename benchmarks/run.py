"""`make bench`: what the store and the head trainer gain, as ratios measured side by side in one run.

Every pair is run in turn (A B A B ...) after a warm-up, on a warm page cache unless it says cold, and the medians are
compared. Prints one JSON document, also written to --out.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from timing import Document, side_by_side

REPO = Path(__file__).parent.parent
sys.path[:0] = [str(REPO / "tests"), str(REPO / "tests" / "probe")]

from oracle import ObviousAttentiveHead  # noqa: E402

from featcache.probe.heads import get_head  # noqa: E402
from featcache.store.checking.verify import verify  # noqa: E402
from featcache.store.reading.machine import usable_cpus  # noqa: E402
from reading import bench_reading  # noqa: E402
from support.caches import make_content, make_plan, write_cache  # noqa: E402
from support.many import make_many  # noqa: E402


def bench_store(folder: Path) -> Document:
    """Reading and writing 16,384 rows of 12 layers of 384 channels (a ViT-S), 327 MB."""
    plan = make_plan({"train": 16_384, "test": 128}, num_layers=12, width=384, batch_size=128)
    content = make_content(plan)
    cache = write_cache(folder / "cache", plan, content)
    features = cache.directory / "features.zarr"
    files = [(features / path).read_bytes() for record in cache.manifest.blocks for path in record.files]
    numbers = iter(range(10**6))
    return {
        **bench_reading(folder / "cache", folder),
        "writing with fsync and digests, against plain files with fsync": side_by_side(
            lambda: write_cache(folder / f"cache-{next(numbers)}", plan, content),
            lambda: _write_plain(folder / f"plain-{next(numbers)}", files),
            runs=7,
        ),
    }


def _write_plain(folder: Path, files: list[bytes]) -> None:
    folder.mkdir()
    for number, data in enumerate(files):
        with (folder / str(number)).open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())


def bench_verify(folder: Path) -> Document:
    """`featcache verify` of 24,576 rows of 12 layers of 384 channels (492 MB), against hashlib over the same bytes in memory."""
    plan = make_plan({"train": 24_576, "test": 128}, num_layers=12, width=384, batch_size=128)
    cache = write_cache(folder / "verified", plan, make_content(plan))
    paths = [path for record in cache.manifest.blocks for path in record.files]
    contents = [(cache.directory / "features.zarr" / path).read_bytes() for path in paths]

    def hash_all() -> None:
        with ThreadPoolExecutor(usable_cpus()) as pool:
            list(pool.map(lambda data: hashlib.sha256(data).hexdigest(), contents))

    def check() -> None:
        assert verify(cache.directory).intact

    result = side_by_side(check, hash_all, runs=5)
    return {**result, "megabytes": sum(map(len, contents)) // 10**6, "threads": usable_cpus()}


def bench_head(batch: int, tokens: int, width: int) -> Document:
    """One training step of the attentive head against the obvious module with materialised keys and values."""
    x = torch.nn.functional.normalize(torch.randn(batch, tokens, width), dim=-1)
    labels = torch.randint(0, 100, (batch,))
    heads = [get_head("attentive").build(tokens, width, 100, 0.1), ObviousAttentiveHead(width, 100, tokens)]

    def stepper(head: torch.nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head.train()(x), labels).backward()
            optimizer.step()

        return step

    return side_by_side(stepper(heads[0]), stepper(heads[1]))


def bench_start(folder: Path) -> Document:
    """Seconds of whole commands that need no torch, median."""
    command = [str(Path(sys.executable).parent / "featcache")]
    results: Document = {}
    make_many(folder / "many", 1000, num_layers=24, samples=50_000)
    # An empty root: the user's own caches have no part in this.
    for what, name, root in (
        ("featcache ls", "ls", os.devnull),
        ("featcache --help", "--help", os.devnull),
        ("featcache ls of 1,000 caches", "ls", str(folder / "many")),
    ):
        seconds = []
        for _ in range(9):
            started = time.perf_counter()
            environment = {**os.environ, "FEATCACHE_ROOT": root}
            subprocess.run([*command, name], check=True, capture_output=True, env=environment)
            seconds.append(time.perf_counter() - started)
        results[what] = round(median(seconds), 3)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "featcache-bench.json")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        store = bench_store(Path(folder))
        verified = bench_verify(Path(folder))
        started = bench_start(Path(folder))
    document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("featcache", "torch", "numpy", "zarr")},
        "store": store,
        "verify, warm, against hashlib.sha256 of bytes in memory": verified,
        "attentive head, one training step (batch x tokens x width)": {
            f"{b} x {t} x {d}": bench_head(b, t, d) for b, t, d in ((300, 24, 384), (204, 48, 1024))
        },
        "seconds to answer": started,
    }
    text = json.dumps(document, indent=1)
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
