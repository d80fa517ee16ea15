"""What training heads costs, against the obvious implementation: one module and one loop for every member.

All rows or some of them: `.venv/bin/python benchmarks/trainer.py [attentive linear ...]`. With --toy the sizes are those of a toy,
which shows that a row runs, and nothing else.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from timing import Document

from featcache.probing.heads.scratch import release
from featcache.probing.training.process import flush_denormals, keep_freed_memory

ROWS = {
    "attentive": ("trainer_sweeps", "bench_attentive"),
    "rates": ("trainer_rates", "bench_rates"),
    "aat": ("trainer_sweeps", "bench_aat"),
    "linear": ("trainer_sweeps", "bench_linear"),
    "optimizer": ("trainer_optimizer", "bench_optimizer"),
    "streaming": ("trainer_caches", "bench_streaming"),
    "gpu": ("trainer_caches", "bench_gpu"),
    "agreement": ("trainer_scores", "bench_digits"),
    "textile": ("trainer_scores", "bench_textile"),
}
"""By row: module and function. The first line of the function's docstring is the title."""


def bench_trainer(rows: Sequence[str] = (), toy: bool = False) -> Document:
    """The rows named, or all."""
    keep_freed_memory()  # as the command line does; both sides of every comparison run in this process
    document: Document = {}
    for row in rows or ROWS:
        print(f"measuring: trainer, {row}", file=sys.stderr, flush=True)
        release()  # what one row leaves in the buffers is no part of the next
        module, name = ROWS[row]
        function = getattr(import_module(module), name)
        document[function.__doc__.splitlines()[0].rstrip(".")] = function(toy)
    return document


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"{', '.join(ROWS)}; all if none is named")
    parser.add_argument("--toy", action="store_true", help="toy sizes: only whether it runs")
    arguments = parser.parse_args()
    unknown = [row for row in arguments.rows if row not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join(ROWS)}")
    tests = Path(__file__).parent.parent / "tests"
    sys.path += [str(tests), str(tests / "probe")]
    flush_denormals()
    print(json.dumps(bench_trainer(arguments.rows, arguments.toy), indent=1))
