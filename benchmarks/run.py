"""`make bench`: what featcache costs and gains, mostly as ratios measured side by side in one run.

Every pair is run in turn (A B A B ...) after a warm-up, on a warm page cache unless it says cold, and the medians are
compared. Prints one JSON document, also written to --out. All rows take about half an hour on two cores; those
of the extraction need what `make demo` fetches.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from timing import Document

TESTS = Path(__file__).parent.parent / "tests"
BENCHMARKS = {
    "store": ("caches", "bench_store"),
    "int8": ("int8", "bench_int8"),
    "extraction": ("extraction", "bench_extraction"),
    "decoding": ("decoding", "bench_decoding"),
    "trainer": ("trainer", "bench_trainer"),
    "solver": ("solver", "bench_solver"),
    "out-of-core": ("out_of_core", "bench_out_of_core"),
    "datasets": ("datasets_reading", "bench_datasets"),
    "growth": ("growth", "bench_growth"),
    "transfer": ("transfer", "bench_transfer"),
}
"""By row: module and function."""


def measure(row: str, toy: bool) -> Document:
    """Run the benchmarks of one row."""
    module, function = BENCHMARKS[row]
    document: Document = getattr(import_module(module), function)(toy=toy)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "rows", nargs="*", metavar="row", help=f"{', '.join(BENCHMARKS)}; all if none is named"
    )
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "featcache-bench.json")
    parser.add_argument("--toy", action="store_true", help="toy sizes: only whether it runs")
    arguments = parser.parse_args()
    unknown = [row for row in arguments.rows if row not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    sys.path += [str(TESTS), str(TESTS / "probe")]
    torch.set_flush_denormal(True)  # before any operation has started threads, which inherit it
    document: Document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("featcache", "torch", "numpy", "zarr")},
    }
    for row in arguments.rows or BENCHMARKS:
        print(f"measuring: {row}", file=sys.stderr, flush=True)
        document[row] = measure(row, arguments.toy)
    text = json.dumps(document, indent=1)
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
