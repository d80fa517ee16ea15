"""The benchmarks run against the package as it is: figures in the docs come from commands that anyone can run again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TESTS = BENCHMARKS.parent / "tests"
# Of the other rows one needs what the demo fetches, one a GPU, and one takes as long as these together.
ROWS = ("attentive", "rates", "aat", "linear", "agreement")


def test_the_trainers_rows_run():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "trainer.py", *ROWS, "--tiny"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == len(ROWS)


def test_the_row_on_decoding_runs():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "decoding.py", "--toy"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 8


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_uses_is_there(path):
    paths = map(str, (BENCHMARKS, TESTS, TESTS / "probe"))
    done = subprocess.run(
        [sys.executable, "-c", f"import {path.stem}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
