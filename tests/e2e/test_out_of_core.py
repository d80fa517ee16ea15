"""Probes whose features do not fit into memory, through the command line: they say so, give the same result, and survive SIGKILL."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.probing.results.rows import RESULTS_FILE
from featcache.probing.training.unfinished import FOLDER
from support.caches import make_content, make_plan, write_cache
from support.processes import start_module
from support.running import Outcome

PROTOCOL = 'base = "quick"\nlearning_rates = [1e-2]\nweight_decays = [1e-4]\nmin_epochs = 1\nmin_steps = 10\n'
TIGHT = "12MB"
"""Too little for all features of the solved heads at once, enough for the tokens and for blocks."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight classes that overlap a little, 4,000 samples of 32 channels in 3 layers."""
    folder = tmp_path_factory.mktemp("out-of-core")
    (folder / "fast.toml").write_text(PROTOCOL)
    plan = make_plan({"train": 4000, "test": 400}, width=32, num_classes=8)
    content, rng = make_content(plan), np.random.default_rng(0)
    centers = rng.normal(size=(8, 3, 2, 32))
    for split in content.values():
        labels = np.arange(len(split["label"])) % 8
        noise = rng.normal(size=(len(labels), 3, 2, 32))
        split["label"] = labels
        split["norm2"] = (0.6 * centers[labels] + noise).astype(np.float16)
        split["final"] = split["norm2"][:, -1:]
    write_cache(folder / "cache", plan, content)
    return folder / "cache"


def arguments(cache: Path, head: str, out: Path, *more: str) -> list[str]:
    protocol = str(cache.parent / "fast.toml")
    selection = ["--layers", "all", "--tokens", "cls+ap", "--device", "cpu"]
    return [
        "probe",
        "--cache",
        str(cache),
        "--head",
        head,
        "--protocol",
        protocol,
        *selection,
        "--out",
        str(out),
        *more,
    ]


def row_of(out: Path, head: str) -> dict[str, object]:
    """Return the row that was asked for; the solved reference on the last class token comes before it."""
    rows = [json.loads(line) for line in (out / RESULTS_FILE).read_text().splitlines()]
    return [row for row in rows if row["head"] == head][-1]


@pytest.mark.parametrize("head", ["logreg", "lda"])
def test_a_budget_that_does_not_hold_all_features_gives_the_same_result(
    cache: Path, tmp_path: Path, head: str, cli: Callable[..., Outcome]
) -> None:
    whole = cli(*arguments(cache, head, tmp_path / "whole"))
    assert whole.status == 0, whole.err
    assert "samples at a time" not in whole.err
    tight = cli(*arguments(cache, head, tmp_path / "tight", "--memory", TIGHT))
    assert tight.status == 0, tight.err
    assert "samples at a time" in tight.err
    mine, other = row_of(tmp_path / "tight", head), row_of(tmp_path / "whole", head)
    assert mine["score"] == pytest.approx(other["score"], abs=0.6)
    assert mine["validation_score"] == pytest.approx(other["validation_score"], abs=0.006)
    assert not (tmp_path / "tight" / FOLDER).exists()


def test_a_budget_too_small_for_blocks_is_refused(
    cache: Path, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    refused = cli(*arguments(cache, "logreg", tmp_path, "--memory", "1MB"))
    assert refused.status != 0
    assert "needs at least about" in refused.err
    assert "--memory allows 1.0 MB" in refused.err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_path_survives_an_interruption(cache: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Stopped when it has solved for some penalties, a probe finds these again."""
    command = arguments(cache, "logreg", tmp_path / "killed", "--memory", TIGHT)
    process = start_module("featcache", *command)
    folder, deadline = tmp_path / "killed" / FOLDER, time.monotonic() + 60
    while len(list(folder.glob("*/*.path"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert ("files are kept; the same command resumes" in errors) == (number == signal.SIGINT)
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*/*.path")}
    assert len(kept) >= 2
    resumed = start_module("featcache", *command)
    _, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert "solutions of an interrupted run" in errors
    assert not folder.exists()
    whole = start_module("featcache", *arguments(cache, "logreg", tmp_path / "whole", "--memory", TIGHT))
    whole.communicate(timeout=120)
    mine, other = row_of(tmp_path / "killed", "logreg"), row_of(tmp_path / "whole", "logreg")
    assert (mine["score"], mine["penalty"]) == (other["score"], other["penalty"])
