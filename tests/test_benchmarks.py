"""The benchmarks run against the package as it is: figures in the docs come from commands that anyone can run again.

Every benchmark runs in toy size, in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
BENCHMARKS = REPO / "benchmarks"
TESTS = REPO / "tests"
ROWS = ("store", "int8", "extraction", "trainer", "solver", "out-of-core", "datasets", "growth", "transfer")
GPU_STAGES = (
    ("machine", "correct", "forward", "speed"),
    ("out_of_memory", "trainer", "heads", "solver", "budget", "table"),
    *((("suite", "races"),) if os.environ.get("FEATCACHE_TEST_GPU_CHECK") else ()),
)
"""The stages of the check of a GPU, in groups that take about as long; the last ones run tests of the suite once more."""


NO_EVICTION = "this machine does not evict files from the page cache"


def run(*command, **variables):
    """Run a Python command; return its standard output."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (BENCHMARKS, TESTS))), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def has_figures(document):
    """Whether there is a figure somewhere, and not only why there is none."""
    if isinstance(document, dict):
        return any(map(has_figures, document.values()))
    return isinstance(document, int | float)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_runs(tmp_path, row):
    document = json.loads(run(BENCHMARKS / "run.py", row, "--toy", "--out", tmp_path / "bench.json"))
    assert json.loads((tmp_path / "bench.json").read_text()) == document
    assert document[row]
    missing = {title: part for title, part in document[row].items() if not has_figures(part)}
    # The scores on the demo's images need its files, and cold reads a page cache that evicts files when it is told to.
    for title, part in missing.items():
        assert "demo's cache" in title or part == {"skipped": NO_EVICTION}


def test_versions_are_compared(tmp_path):
    command = (BENCHMARKS / "against.py", sys.executable, "gather", "verify", "--toy")
    document = json.loads(run(*command))
    assert {"gather", "verify"} <= document.keys()
    assert document["gather"]["seconds"] > 0


def test_every_operation_of_the_comparison_runs(tmp_path):
    script = """
import sys
from pathlib import Path
import against, against_operation
against_operation.IMAGES = 8
against_operation.SHOTS = 4
cache = against.write_cache(Path(sys.argv[1]), toy=True)
for operation in against_operation.OPERATIONS:
    against_operation.main([operation.__name__, str(cache), str(cache.parents[2] / "scratch")])
"""
    seconds = run("-c", script, tmp_path).split()
    assert len(seconds) == 11
    assert all(float(value) > 0 for value in seconds)


@pytest.mark.parametrize("stages", GPU_STAGES, ids=lambda stages: stages[0])
def test_the_check_of_a_gpu_runs(tmp_path, stages):
    import torch

    # Without a GPU a pretended one takes its place, so that the lines for GPUs run too.
    pretended = () if torch.cuda.is_available() else ("--pretended",)
    out = tmp_path / "check.jsonl"
    printed = run(BENCHMARKS / "gpu_check", "--toy", *pretended, "--only", ",".join(stages), "--out", out)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["stage"] for line in found] == list(stages)
    assert [line for line in found if not line.get("ok", True)] == []
    for line in found:
        assert f"| {line['stage']} | {'ok' if 'ok' in line else 'measured'} |" in printed


def test_the_check_of_a_gpu_survives_a_stage_that_fails(tmp_path):
    script = """
import sys
from pathlib import Path
import torch
from stage import Check, Stage, run_stages

def breaks(check):
    return {"value": 1 / 0}

def holds(check):
    return {"ok": True}

check = Check(torch.device("cpu"), True, 60.0, Path(sys.argv[1]))
run_stages(check, [Stage(breaks, 1), Stage(holds, 1)], sys.stdout)
late = Check(torch.device("cpu"), False, 0.0, Path(sys.argv[1]))
run_stages(late, [Stage(holds, 1)], sys.stdout)
"""
    printed = run("-c", script, tmp_path, PYTHONPATH=str(BENCHMARKS / "gpu_check"))
    broken, held, late = map(json.loads, printed.splitlines())
    assert (broken["ok"], broken["error"]) == (False, "ZeroDivisionError: division by zero")
    assert held["ok"]
    assert late["skipped"].endswith("s are left, and it takes 1 s")


def test_the_check_of_a_gpu_knows_its_stages_and_needs_a_gpu(tmp_path):
    import torch

    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / "gpu_check"), "--out", str(tmp_path / "out")]
    unknown = subprocess.run([*command, "--only", "speeed"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "unknown stage 'speeed'; there are machine, suite" in unknown.stderr
    if not torch.cuda.is_available():
        without = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (without.returncode, without.stdout) == (2, "")
        assert without.stderr == "no GPU: --toy runs the stages in toy size on the CPU\n"


def test_the_page_of_results_is_written(tmp_path):
    run(BENCHMARKS / "results.py", "--toy", tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "### digits: " in page
    (header,) = {line for line in page.splitlines() if "over solved" in line and line.startswith("|")}
    column = header.split(" | ").index("over solved")
    lines = {
        line.split(" | ")[0]: line.split(" | ")
        for line in page.partition("### digits")[2].partition("\n###")[0].splitlines()
    }
    assert lines["| `logreg`"][column] == "+0.00"
    assert lines["| `linear`"][column + 1] == "+0.00"
    assert "divided anew in 2 ways" in page


def test_the_evidence_on_inputs_is_written_and_not_computed_twice(tmp_path):
    run(BENCHMARKS / "evidence.py", "--toy", tmp_path)
    rows = (tmp_path / "inputs.jsonl").read_text()
    assert len(rows.splitlines()) == 4
    page = (tmp_path / "results.md").read_text()
    assert "| own | all, cls+ap | plain+flip | float16 |" in page
    run(BENCHMARKS / "evidence.py", "--toy", tmp_path)
    assert (tmp_path / "inputs.jsonl").read_text() == rows


def test_the_row_on_decoding_runs():
    assert json.loads(run(BENCHMARKS / "decoding.py", "--toy"))["images"] == 8
