"""int8 caches through the command line: extract, resume, add, measure the loss, probe, export, repair."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import featcache
from featcache.store.files import read_sealed
from support.caches import all_files, flip

from .conftest import MODEL, make_images


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """180 images, so that train has two blocks; one of them does not decode."""
    folder = make_images(tmp_path_factory.mktemp("photos") / "photos", {"a": 90, "b": 90})
    (folder / "a" / "bad.png").write_bytes(b"no image")
    return folder


def arguments(weights, images, root, *more):
    return (
        *("extract", "--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{images}"),
        *("--precision", "fp32", "--on-error", "skip", "--root", root, "--json", *more),
    )


def extract(cli, weights, images, root, *more):
    done = cli(*arguments(weights, images, root, *more))
    assert done.status == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope="module")
def caches(tmp_path_factory, weights, photos):
    """The same images as int8 and as float32."""
    root = tmp_path_factory.mktemp("root")
    return {
        dtype: featcache.extract(
            MODEL,
            f"imagefolder:{photos}",
            weights=weights,
            precision="fp32",
            on_error="skip",
            dtype=dtype,
            root=root,
            progress=False,
        )
        for dtype in ("int8", "float32")
    }


def data_of(cache: Path) -> dict[str, bytes]:
    return {name: data for name, data in all_files(cache).items() if name.startswith("features.zarr")}


def test_values_are_near_and_failed_rows_are_nan(caches):
    for split in ("train", "test"):
        coarse, exact = (caches[dtype][split] for dtype in ("int8", "float32"))
        assert coarse.stored_dtype == "int8"
        values = exact.load("every", "cls+ap")
        got = coarse.load("every", "cls+ap", dtype="float32")
        valid = exact.valid()
        np.testing.assert_array_equal(coarse.valid(), valid)
        assert np.isnan(got[~valid]).all()
        error = np.linalg.norm(got[valid] - values[valid], axis=-1) / np.linalg.norm(values[valid], axis=-1)
        assert 1e-4 < error.mean() < 0.02
    assert sum((~caches["int8"][split].valid()).sum() for split in ("train", "test")) == 1
    provenance = caches["int8"].provenance["int8_of_last_run"]
    assert provenance["values"] == sum(
        caches["int8"][split].load("every", "cls+ap", dtype="int8").size for split in ("train", "test")
    )


def test_layers_one_by_one_give_the_same_cache(cli, weights, photos, caches, tmp_path):
    first = extract(cli, weights, photos, tmp_path, "--dtype", "int8", "--layers", "2")
    added = extract(cli, weights, photos, tmp_path, "--dtype", "int8")
    assert first["key"] == added["key"] == caches["int8"].key
    assert data_of(Path(added["path"])) == data_of(caches["int8"].directory)
    again = extract(cli, weights, photos, tmp_path, "--dtype", "int8")
    assert again["cached"]


def test_a_killed_run_resumes_with_the_scales_of_its_plan(cli, weights, photos, caches, tmp_path):
    command = [
        sys.executable,
        "-m",
        "featcache",
        *map(str, arguments(weights, photos, tmp_path, "--dtype", "int8")),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("*/*/journal/plan.json")) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    plan = read_sealed(next(tmp_path.glob("*/*/journal/plan.json")))
    done = cli(*arguments(weights, photos, tmp_path, "--dtype", "int8"))
    assert done.status == 0, done.err
    assert "fitting" not in done.err
    folder = Path(json.loads(done.out)["path"])
    manifest = read_sealed(folder / "manifest.json")
    assert {path: manifest["metadata"][path] for path in plan["scales"]} == plan["scales"]
    assert data_of(folder) == data_of(caches["int8"].directory)


def test_repaired_scales_are_fitted_again(cli, weights, photos, caches, tmp_path):
    folder = Path(extract(cli, weights, photos, tmp_path, "--dtype", "int8")["path"])
    before = data_of(folder)
    flip(folder / "features.zarr/scale_norm2/c.0.0.0")
    done = cli("verify", folder, "--repair")
    assert done.status == 1, done.out
    assert "features.zarr/scale_norm2/c.0.0.0: content does not match its SHA-256" in done.out
    extract(cli, weights, photos, tmp_path, "--dtype", "int8")
    assert data_of(folder) == before


def test_loss_and_recomputation(cli, weights, photos, caches):
    common = ("--dataset", f"imagefolder:{photos}", "--weights", weights)
    folder = caches["int8"].directory
    done = cli("verify", folder, "--dtype-loss", "--recompute", 40, *common, "--json")
    assert done.status == 0, done.err
    document = json.loads(done.out)["recompute"]
    assert document["samples"] >= 40
    assert document["agrees"]
    losses = {(loss["array"], loss["layer"], loss["token"]): loss for loss in document["dtype_loss"]}
    assert len(losses) == 2 * 7
    for loss in losses.values():
        assert 0 < loss["mean_relative"] < loss["largest_relative"] < 0.1
        # The pass runs in the batches of the extraction.
        assert loss["pass_relative"] < 1e-4
    told = cli("verify", folder, "--dtype-loss", *common).out
    assert "loss of the stored type on " in told
    assert "array  layer  token  mean loss  largest loss  of it by the pass  clipped" in told
    plain = cli("verify", folder, "--recompute", 5, *common)
    assert plain.status == 0
    assert "5 samples recomputed" in plain.out
    assert "mean loss" not in plain.out
    exact = json.loads(cli("verify", caches["float32"].directory, "--dtype-loss", *common, "--json").out)
    assert max(loss["mean_relative"] for loss in exact["recompute"]["dtype_loss"]) < 1e-5


def test_loss_needs_the_images(cli, caches):
    done = cli("verify", caches["int8"].directory, "--dtype-loss")
    assert (done.status, done.err.splitlines()[-1]) == (
        2,
        "featcache: --dtype-loss and --recompute need the images; give --dataset, for example imagefolder:DIR",
    )


def test_probes_take_it_like_any_other(cli, caches, tmp_path):
    scores = {}
    for dtype, cache in caches.items():
        done = cli(
            *("probe", "--cache", cache.directory, "--head", "ridge", "--layers", "all"),
            *("--json", "--out", tmp_path / "results"),
        )
        assert done.status == 0, done.err
        scores[dtype] = json.loads(done.out)
    assert abs(scores["int8"][0]["balanced_accuracy"] - scores["float32"][0]["balanced_accuracy"]) < 0.05
    table = cli("results", tmp_path / "results").out
    assert "(stored as int8)" in table
    assert len({line.split("  ")[1] for line in table.splitlines()[1:] if line.startswith("photos")}) == 2


def test_exports_are_decoded_and_come_back_as_another_cache(cli, caches, tmp_path):
    cache, file = caches["int8"], tmp_path / "out.h5"
    done = cli("export", cache.directory, "--to", "h5", "--out", file)
    assert done.status == 0, done.err
    assert "note: int8 features are written decoded, as float16" in done.err
    with h5py.File(file) as opened:
        np.testing.assert_array_equal(opened["train/final"][:], cache["train"].load("last", "cls+ap"))
    refused = cli("import", file, "--root", tmp_path / "other")
    assert refused.status == 2
    assert (
        "holds decoded values of an int8 cache, which become a cache of their own: name it with --dataset"
        in refused.err
    )
    done = cli("import", file, "--dataset", "x", "--model", "y", "--root", tmp_path / "other", "--json")
    assert done.status == 0, done.err
    imported = featcache.open(json.loads(done.out)["path"])
    assert imported.key != cache.key
    assert imported["train"].stored_dtype == "float16"
    np.testing.assert_array_equal(imported["train"].load("every", "cls"), cache["train"].load("every", "cls"))


def test_wrong_types(cli, weights, photos, tmp_path):
    done = cli(*arguments(weights, photos, tmp_path, "--dtype", "int4"))
    assert done.status == 2
    assert "dtype 'int4'" in done.err
    assert not list(tmp_path.iterdir())


def test_ls_names_the_type_where_a_cache_is_not_float16(cli, made, caches, tmp_path):
    assert "stored as" not in cli("ls").out
    assert json.loads(cli("ls", "--json").out)[0]["dtype"] == "float16"
    done = cli("convert", made)
    assert done.status == 0, done.err
    assert "loss of the stored type on 390 samples: " in done.out
    lines = cli("ls").out.splitlines()
    assert lines[0].endswith("stored as")
    assert sorted(line.split()[-1] for line in lines[1:]) == ["float16", "int8"]
    assert cli("convert", made).out.startswith("already there: ")
    assert cli("convert", "nope").status == 2
