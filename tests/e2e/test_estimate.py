"""What `extract --dry-run` and `doctor` say, that a run without room does not begin, and passes side by side."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

import featcache as package
from support.caches import all_files

from .test_chain import extract_arguments


def estimate_of(cli, arguments):
    done = cli(*arguments, "--dry-run", "--json")
    assert done.status == 0, done.err
    return json.loads(done.out)


def test_a_dry_run_says_what_the_run_does_and_writes_nothing(cli, weights, images, tmp_path):
    arguments = extract_arguments(weights, f"imagefolder:{images}")
    planned = estimate_of(cli, arguments)
    assert not list(tmp_path.glob("root/**/*"))
    result = json.loads(cli(*arguments, "--json").out)
    assert (planned["key"], planned["path"]) == (result["key"], result["path"])
    features = package.open(result["path"]).directory / "features.zarr"
    written = sum(path.stat().st_size for path in features.rglob("c.*"))
    assert planned["bytes"] == planned["bytes_to_write"] == written
    before = all_files(tmp_path / "root")
    done = estimate_of(cli, arguments)
    assert (done["state"], done["bytes_to_write"], done["samples_to_extract"]) == ("complete", 0, 0)
    more = estimate_of(cli, (*arguments, "--tap", "norm2,mlp"))
    assert (more["state"], more["samples_to_extract"]) == ("lacking", 120)
    assert 0 < more["bytes_to_write"] < more["bytes"]
    assert all_files(tmp_path / "root") == before
    assert (
        "complete, but lacks train: mlp; test: mlp" in cli(*arguments, "--tap", "norm2,mlp", "--dry-run").out
    )


def test_a_dry_run_says_which_images_would_fail(cli, weights, tmp_path):
    folder = tmp_path / "deep"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.zeros((8, 8), np.int32)).save(folder / label / f"{number}.tif")
    arguments = extract_arguments(weights, f"imagefolder:{folder}")
    done = cli(*arguments, "--dry-run")
    assert "note: 6 of 6 images that were tried would fail: image 'a/0.tif': its pixels are int32" in done.err
    assert "would fail" not in cli(*arguments, "--dry-run", "--pixel-range", "8").err


def test_without_room_nothing_is_begun(cli, weights, images, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    arguments = extract_arguments(weights, f"imagefolder:{images}")
    done = cli(*arguments)
    assert done.status == 1
    assert "not enough disk space: 0.5 MB are to be written, 0.0 MB are free at" in done.err.splitlines()[-1]
    assert not list(tmp_path.glob("root/**/*"))
    assert not estimate_of(cli, arguments)["fits"]


def test_doctor_tells_a_root_that_cannot_be_written(cli, tmp_path):
    healthy = cli("doctor", "--json")
    assert healthy.status == 0, healthy.out
    assert json.loads(healthy.out)["ok"]
    (tmp_path / "file").write_text("")
    broken = cli("doctor", "--root", tmp_path / "file" / "root")
    assert broken.status == 1
    assert f"cannot be made: {tmp_path / 'file'} is not a folder" in broken.out


@pytest.mark.parametrize("replicas", [1, 2])
def test_passes_side_by_side_give_the_same_cache(cli, weights, images, tmp_path, monkeypatch, replicas):
    monkeypatch.setattr(
        "featcache.extraction.forward_pass.extractors.replicas_and_threads", lambda device: (replicas, 1)
    )
    arguments = extract_arguments(weights, f"imagefolder:{images}", "--batch-size", 16)
    done = cli(*arguments, "--json")
    assert done.status == 0, done.err
    recomputed = cli(
        "verify", "--recompute", 120, "--dataset", f"imagefolder:{images}", "--weights", weights, "--json"
    )
    document = json.loads(recomputed.out)["recompute"]
    assert document["samples"] == 120
    assert document["agrees"]
    assert max(layer["largest_relative"] for layer in document["layers"]) < 2e-3
    train = package.open(json.loads(done.out)["path"])["train"]
    assert np.isfinite(train.load(train.layers, train.tokens)).all()
