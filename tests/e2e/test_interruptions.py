"""Ctrl-C and SIGKILL in the middle of a real extraction: nothing committed is lost, and the result is the same."""

import signal
import time

import pytest

from support.caches import all_files

from .conftest import MODEL, featcache, make_images

# These say when and how the cache was made.
OF_THE_RUN = ("provenance.json",)


@pytest.fixture(scope="module")
def many_images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("many") / "noise", {"a": 300, "b": 300})


def start(weights, images, root):
    return featcache(
        *("extract", "--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{images}"),
        *("--precision", "fp32", "--batch-size", 16, "--workers", 1, "--root", root),
        start_new_session=True,
    )


def wait_for_first_block(process, root):
    deadline = time.monotonic() + 120
    while not list(root.glob("*/*/journal/train.*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def result_files(root):
    (cache,) = root.glob("*/*")
    return {path: data for path, data in all_files(cache).items() if path not in OF_THE_RUN}


@pytest.fixture(scope="module")
def whole(weights, many_images, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    process = start(weights, many_images, root)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return result_files(root)


def test_ctrl_c_leaves_a_resumable_cache_and_says_so(weights, many_images, whole, tmp_path):
    root = tmp_path / "root"
    process = start(weights, many_images, root)
    wait_for_first_block(process, root)
    # As the terminal does it: to the whole process group, decoding workers included.
    import os

    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
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

    resumed = start(weights, many_images, root)
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert "resuming" in err
    assert result_files(root) == whole


def test_sigkill_then_resume_gives_the_same_bytes(weights, many_images, whole, tmp_path):
    root = tmp_path / "root"
    process = start(weights, many_images, root)
    wait_for_first_block(process, root)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (cache,) = root.glob("*/*")
    assert not (cache / "manifest.json").exists()
    refused = featcache("probe", "--head", "linear", "--cache", cache)
    _, err = refused.communicate()
    assert refused.returncode == 1
    assert "is incomplete: " in err
    assert "Run the same `featcache extract` again to finish it." in err

    resumed = start(weights, many_images, root)
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert result_files(root) == whole
