"""Ctrl-C, SIGKILL and failing disks in the middle of a real extraction: nothing committed is lost, and the result is the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from featcache.store.writing.claims import Claims
from support.caches import all_files
from support.faults import Fault, build_library
from support.mounts import mounted, unmount

from .conftest import MODEL, featcache, make_images

# These say when and how the cache was made.
OF_THE_RUN = ("provenance.json",)
KILLS = int(os.environ.get("FEATCACHE_TEST_REAL_KILLS", "5"))
KILLS_EACH = 5
LIMIT_S = 120.0
COMMAND = str(Path(sys.executable).parent / "featcache")

# The command line with a checkpoint after every batch, where it has one every twenty seconds.
CHECKPOINTS = """
from functools import partial
from featcache.extraction.running import fill
fill.CacheWriter = partial(fill.CacheWriter, checkpoint_s=0.0)
from featcache.cli import main
main()
"""


@pytest.fixture(scope="module")
def many_images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("many") / "noise", {"a": 300, "b": 300})


def arguments(weights, images, root):
    return (
        *("extract", "--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{images}"),
        *("--precision", "fp32", "--batch-size", 16, "--workers", 1, "--root", root),
    )


# With more threads, those of the backbone and the decoding process get into each other's way on two cores.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(weights, images, root, **environment):
    env = ENVIRONMENT | environment
    return featcache(*arguments(weights, images, root), start_new_session=True, env=env)


def has_begun(root, since_ns=0):
    """Whether a process has claimed a block of the only cache under `root`."""
    with suppress(FileNotFoundError):  # files come and go
        return any(path.stat().st_mtime_ns > since_ns for path in root.glob("*/*/journal/*.?????.claim"))
    return False


def wait_for(happened, process):
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_first_block(process, root):
    wait_for(lambda: list(root.glob("*/*/journal/train.?????.json")), process)


def result_files(root):
    (cache,) = root.glob("*/*")
    return {path: data for path, data in all_files(cache).items() if path not in OF_THE_RUN}


@dataclass
class Whole:
    """An extraction that nothing interrupted."""

    files: dict[str, bytes]
    loading_s: float
    """Seconds until it claimed the first block."""
    writing_s: float
    """Seconds from there to the manifest."""


@pytest.fixture(scope="module")
def whole(weights, many_images, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    process = start(weights, many_images, root)
    wait_for(lambda: has_begun(root), process)
    loaded = time.monotonic()
    wait_for(lambda: list(root.glob("*/*/manifest.json")), process)
    written = time.monotonic()
    _, err = process.communicate()
    assert process.returncode == 0, err
    return Whole(result_files(root), loaded - started, written - loaded)


def check_resumed(weights, images, root, whole):
    resumed = start(weights, images, root)
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert result_files(root) == whole.files
    return err


def test_ctrl_c_leaves_a_resumable_cache_and_says_so(weights, many_images, whole, tmp_path):
    for attempt in range(4):
        root = tmp_path / f"root-{attempt}"
        process = start(weights, many_images, root)
        wait_for_first_block(process, root)
        # As the terminal does it: to the whole process group, decoding workers included.
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
        # On a busy machine the run may be through before the signal comes.
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("featcache: interrupted: ")
    assert "of 600 samples are committed" in last
    assert last.endswith("run the same command again to go on")

    state = featcache("ls", "--root", root).communicate()[0]
    assert "incomplete" in state
    refused = featcache("probe", "--head", "linear", "--root", root)
    _, err = refused.communicate()
    assert refused.returncode == 2
    assert "there is no complete cache" in err
    (cache,) = root.glob("*/*")
    refused = featcache("probe", "--head", "linear", "--cache", cache)
    _, err = refused.communicate()
    assert refused.returncode == 1
    assert "is incomplete: " in err
    assert "Run the same `featcache extract` again to finish it." in err

    assert "resuming" in check_resumed(weights, many_images, root, whole)


def kill_once(command, root, delay, *, while_writing):
    """Start an extraction and kill it `delay` seconds from the start or, `while_writing`, from its first block on."""
    started = time.time_ns()
    # Into a file: the decoding process outlives its parent for a while, and would hold a pipe open.
    with root.with_suffix(".log").open("w") as log:
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, env=ENVIRONMENT)
    while while_writing and not has_begun(root, started) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    status = process.wait()
    assert status in (0, -signal.SIGKILL), root.with_suffix(".log").read_text()
    return status != 0


def check_committed(root, whole):
    """Every block that counts as committed has the bytes that it must have."""
    for record in root.glob("*/*/journal/*.?????.json"):
        for path in json.loads(record.read_bytes())["files"]:
            file = f"features.zarr/{path}"
            assert (record.parent.parent / file).read_bytes() == whole.files[file]


def test_killed_again_and_again_gives_the_same_bytes(weights, many_images, whole, tmp_path):
    rng, kills, full, inside = random.Random(0), 0, 0, 0
    while kills < KILLS or not full:
        root = tmp_path / f"root-{kills}"
        # Loading takes longest; most kills fall into the blocks all the same.
        moments = [False] + [True] * (KILLS_EACH - 1)
        rng.shuffle(moments)
        killed = 0
        for while_writing in moments:
            entry = [sys.executable, "-c", CHECKPOINTS] if rng.random() < 0.5 else [COMMAND]
            delay = rng.uniform(0, whole.writing_s / KILLS_EACH if while_writing else whole.loading_s)
            command = (*entry, *arguments(weights, many_images, root))
            if not kill_once(command, root, delay, while_writing=while_writing):
                break  # it was done before
            killed += 1
            inside += any(root.glob("*/*/features.zarr/*/*/*.partial"))
            check_committed(root, whole)
        check_resumed(weights, many_images, root, whole)
        kills += killed
        full += killed == KILLS_EACH
    assert inside >= kills / 2, "most were killed inside a block"


def check_failed(process, *parts):
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err.splitlines()[-1], err


def test_a_disk_that_fails(weights, many_images, whole, tmp_path):
    library, root = build_library(tmp_path), tmp_path / "root"
    for at in (300, 100):  # after the first block, and soon again
        process = start(weights, many_images, root, **Fault(root, at).environment(library))
        check_failed(process, f"featcache: Input/output error: {root}/", "run the same command again")
    assert "resuming" in check_resumed(weights, many_images, root, whole)


def test_a_root_that_is_unmounted(weights, many_images, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(tmp_path / "root", "--bind", disk) as root:
        process = start(weights, many_images, root)
        wait_for_first_block(process, root)
        unmount(root)
        check_failed(process, f"No such file or directory: {root}/", "was it moved or unmounted?")
        assert list(root.iterdir()) == [], "nothing is written to the folder below"
    with mounted(root, "--bind", disk):
        assert "resuming" in check_resumed(weights, many_images, root, whole)


def test_a_run_that_is_killed_after_it_completed_the_cache(cli, weights, images, tmp_path):
    request = ("extract", "--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{images}")
    assert cli(*request).status == 0
    (cache,) = (tmp_path / "root").glob("*/*")
    complete = all_files(cache)
    (cache / "journal").mkdir()
    (cache / "journal" / "plan.json").write_bytes(b"{}")
    with closing(Claims(cache / "journal")) as claims:
        assert claims.acquire("finish")
        assert cli(*request).out.startswith("already cached")
        assert claims.holds("finish"), "it may still be alive"
    assert cli(*request).out.startswith("already cached")
    assert all_files(cache) == complete
    assert not (cache / "journal").exists()
