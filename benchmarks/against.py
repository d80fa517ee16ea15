"""This version of featcache against another one that is installed elsewhere: ``against.py OTHER/bin/python [operations]``.

Both run each operation in turn, each time in a fresh process that times itself; the medians are compared. A worktree of an
older commit with a venv of its own (`make .venv/.package` there) is such another installation.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from against_operation import OPERATIONS

HERE = Path(__file__).parent
RUNS = 7


def seconds(python: str, operation: str, cache: Path, scratch: Path) -> float:
    """Run an operation with an installation."""
    command = [python, str(HERE / "against_operation.py"), operation, str(cache), str(scratch)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=scratch.parent)
    return float(done.stdout.split()[-1])


def write_cache(folder: Path, toy: bool = False) -> Path:
    """Write 16,384 rows of 12 layers of 384 channels (a ViT-S), 330 MB, with this version; 4,096 rows in toy size."""
    sys.path.append(str(HERE.parent / "tests"))
    from support.caches import cache_folder, make_content, make_plan
    from support.caches import write_cache as write

    plan = make_plan(
        {"train": 4096 if toy else 16_384, "test": 128}, num_layers=12, width=384, batch_size=128
    )
    directory = cache_folder(folder / "root", plan)
    write(directory, plan, make_content(plan))
    return directory


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Compare, and print one JSON document."""
    names = [operation.__name__ for operation in OPERATIONS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", help="the Python of the other installation")
    parser.add_argument("operations", nargs="*", help=f"{', '.join(names)}; all if none is named")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--toy", action="store_true", help="toy sizes and one run: only whether it runs")
    arguments = parser.parse_args()
    runs = 1 if arguments.toy else arguments.runs
    document: dict[str, object] = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "runs": runs,
    }
    with tempfile.TemporaryDirectory() as name:
        cache = write_cache(Path(name), arguments.toy)
        for operation in arguments.operations or names:
            # Lists and no dict: an installation may be compared with itself, which shows the noise.
            sides: list[tuple[str, list[float]]] = [(sys.executable, []), (arguments.other, [])]
            for run in range(runs + 1):
                for python, taken in sides:
                    measured = seconds(python, operation, cache, Path(name, "scratch"))
                    if run:  # the first one warms up
                        taken.append(measured)
            ours, theirs = (median(taken) for _, taken in sides)
            document[operation] = {
                "seconds": round(ours, 5),
                "other_seconds": round(theirs, 5),
                "times_faster": round(theirs / ours, 2),
            }
            print(f"{operation}: {document[operation]}", file=sys.stderr, flush=True)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
