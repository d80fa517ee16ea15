"""Caches under a root that is mounted read-only, as a team's often is: everything but writing works."""

import json
import shutil

import pytest

import featcache
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, cache_folder, fill_block, make_content, make_plan
from support.mounts import mounted

from .conftest import MODEL


@pytest.fixture
def request_(weights, images):
    return (
        "extract",
        "--model",
        MODEL,
        "--weights",
        weights,
        "--precision",
        "fp32",
        "--dataset",
        f"imagefolder:{images}",
    )


@pytest.fixture
def read_only(cli, request_, tmp_path):
    """A root that holds a cache and an unfinished one."""
    folder = tmp_path / "team"
    assert cli(*request_, "--root", folder).status == 0
    plan = make_plan()
    with CacheWriter(cache_folder(folder, plan), plan) as writer:
        block = writer.claim()
        fill_block(block, make_content(plan), 32)
        writer.commit(block)
    with mounted(tmp_path / "point", "--bind", "-o", "ro", folder) as point:
        if _is_writable(point):  # an old `mount` does not do both at once
            pytest.skip("cannot bind a folder read-only")
        before = all_files(folder)
        yield point
        assert all_files(folder) == before


def _is_writable(folder):
    try:
        (folder / "probe").touch()
    except OSError:
        return False
    (folder / "probe").unlink()
    return True


def test_what_is_there_is_used(cli, request_, read_only, weights, tmp_path):
    again = cli(*request_, "--root", read_only)
    (line,) = again.err.splitlines()
    assert (again.status, line.partition(",")[0]) == (0, "colours: 120 images")
    assert again.out.startswith(f"already cached: {read_only}/")
    # A copy of the weights is another request that the same cache answers; it cannot be noted down.
    shutil.copyfile(weights, tmp_path / "copy.safetensors")
    copied = [tmp_path / "copy.safetensors" if part == weights else part for part in request_]
    assert cli(*copied, "--root", tmp_path / "mine", "--root", read_only).out == again.out

    listed = json.loads(cli("ls", "--json", "--root", read_only).out)
    assert {cache["state"] for cache in listed} == {"complete", "incomplete (1 of 4 blocks)"}
    for cache in listed:
        info = cli("info", cache["path"])
        assert (info.status, info.err) == (0, "")
    (complete,) = [cache["path"] for cache in listed if cache["state"] == "complete"]
    features = featcache.open(complete)["train"].load(["final"], ["cls"])
    assert features.shape == (90, 1, 1, 64)


def test_verify(cli, read_only):
    listed = json.loads(cli("ls", "--json", "--root", read_only).out)
    paths = {cache["state"].partition(" ")[0]: cache["path"] for cache in listed}
    partial = cli("verify", paths["incomplete"])
    assert partial.status == 1
    assert "3 of 4 blocks are missing, what is committed is intact" in partial.out + partial.err
    assert cli("verify", paths["complete"]).status == 0


def test_writing_there_is_refused_in_one_line(cli, request_, read_only):
    other = [*request_[:-1], "digits", "--limit", "10"]
    outcome = cli(*other, "--root", read_only)
    assert outcome.status == 1
    assert outcome.out == ""
    read, loading, prepared, last = outcome.err.splitlines()
    assert read.startswith("digits: ")
    assert loading.startswith("loading ")
    assert prepared.startswith("images are resized to ")
    assert last.startswith(f"featcache: Read-only file system: {read_only}/digits")
    assert last.endswith("; name a folder that can be written to")
