"""Views of images through the command line: extracted at once or step by step, pulled in part, trained on, predicted with."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform

import featcache as package
from support.caches import all_files

from .conftest import featcache
from .test_chain import extract_arguments

VIEWS = "flip,crops5,scales:160+176,random:2:seed1"
NAMES = ["crop1", "crop2", "crop3", "crop4", "flip", "random1seed1", "random2seed1", "scale176"]


def content_of(folder):
    """All files but those that say when and how the cache was made."""
    found = all_files(Path(folder))
    return {path: data for path, data in found.items() if path not in ("provenance.json", "request.json")}


@pytest.fixture(scope="module")
def few(images, tmp_path_factory):
    """A folder of three classes of 8 images."""
    folder = tmp_path_factory.mktemp("few") / "colours"
    for path in sorted(images.glob("*/*.png")):
        if int(path.stem) < 8:
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.parent.name)
    return folder


def run(cli, weights, dataset, *more):
    outcome = cli(*extract_arguments(weights, f"imagefolder:{dataset}", *more, "--json"))
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def test_views_are_added_to_a_cache_that_keeps_its_key_in_any_order(cli, weights, few, tmp_path):
    plain = run(cli, weights, few)
    before = content_of(plain["path"])
    assert json.loads(before["manifest.json"])["spec"]["format_version"] == 2
    assert "views" not in json.loads(before["manifest.json"])["inventory"]
    for step in ("flip", "scales:160+176", VIEWS):
        added = run(cli, weights, few, "--views", step)
        assert (added["key"], added["cached"]) == (plain["key"], False)
        assert cli("verify").status == 0
    grown = content_of(plain["path"])
    manifest = json.loads(grown["manifest.json"])
    assert manifest["spec"]["format_version"] == 3
    assert list(manifest["inventory"]["views"]) == NAMES
    assert manifest["inventory"]["views"]["crop2"] == {"kind": "corner-crop", "corner": "top-right"}
    data = {path for path in before if "/c." in path}
    assert {path: grown[path] for path in data} == {path: before[path] for path in data}

    again = cli(
        *extract_arguments(
            weights, f"imagefolder:{few}", "--views", "scales:160", "--root", tmp_path / "third"
        )
    )
    assert "note: view scale160 is the plain one" in again.err

    at_once = run(cli, weights, few, "--views", VIEWS, "--root", tmp_path / "other", "--workers", 0)
    assert content_of(at_once["path"]) == grown
    for asked in ("flip", "crop3", VIEWS, "random1seed1"):
        assert run(cli, weights, few, "--views", asked)["cached"]
    info = cli("info").out
    assert "the same arrays in the views crop1, crop2, crop3, crop4, flip" in info
    assert "crop2: corner-crop, corner top-right" in info

    recomputed = cli(
        "verify", "--recompute", 4, "--dataset", f"imagefolder:{few}", "--weights", weights, "--json"
    )
    document = json.loads(recomputed.out)["recompute"]
    assert document["agrees"]
    assert {layer["array"] for layer in document["layers"]} >= {f"{name}-norm2" for name in NAMES}


def test_every_view_equals_the_plain_pipeline_on_images_made_by_hand(cli, weights, few, tmp_path):
    made = run(cli, weights, few, "--views", "flip,scale176,crop1", "--tokens", "cls,ap,max,patches")
    cache = package.open(made["path"])
    train, ids = cache["train"], cache["train"].sample_ids()
    assert train.image_views == ("plain", "crop1", "flip", "scale176")

    mirrored = tmp_path / "mirrored"
    for path in few.glob("*/*.png"):
        (mirrored / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        flipped.save(mirrored / path.parent.name / path.name)
    other = package.open(run(cli, weights, mirrored, "--root", tmp_path / "m")["path"])["train"]
    assert other.sample_ids() == ids
    wanted = other.load("every", "cls+ap").astype(np.float32)
    flip = train.load("every", "cls+ap", view="flip").astype(np.float32)
    # Pillow's rounding is not quite symmetric, so that a pixel may differ by 1 of 255.
    np.testing.assert_allclose(flip, wanted, atol=0.02)
    assert np.abs(train.load("every", "cls+ap").astype(np.float32) - flip).max() > 0.1

    # timm's own model and preprocessing at 176 px.
    model = timm.create_model("test_vit", num_classes=0)
    model.load_state_dict(load_file(weights))
    model.set_input_size(img_size=176)
    model.eval()
    config = timm.data.resolve_data_config({}, model=timm.create_model("test_vit"), use_test_size=False)
    transform = create_transform(**{**config, "input_size": (3, 176, 176)}, is_training=False)
    images = torch.stack([transform(Image.open(few / name).convert("RGB")) for name in ids])
    with torch.no_grad():
        tokens = model.forward_features(images)
    final = train.load("final", "cls+ap", view="scale176").astype(np.float32)[:, 0]
    expected = torch.stack([tokens[:, 0], tokens[:, 1:].mean(1)], 1).numpy()
    np.testing.assert_allclose(final, expected, atol=4e-3)
    patches = train.view("final", "patches", "scale176")
    assert patches.load("final", patches.tokens).shape == (18, 1, 121, 64)
    statistic = train.view("final", "max", "scale176").load("final", "max").astype(np.float32)
    np.testing.assert_allclose(statistic[:, 0, 0], tokens[:, 1:].amax(1).numpy(), atol=4e-3)


def test_wrong_views_are_refused_before_anything_is_written(cli, weights, few, tmp_path):
    for views, words in (
        ("flop", "unknown view 'flop'; did you mean flip?"),
        ("crop5", "crop goes from 1 to 4"),
        ("scales:170", "170"),
        ("random:99", "1 to 64"),
    ):
        outcome = cli(*extract_arguments(weights, f"imagefolder:{few}", "--views", views))
        assert outcome.status in (1, 2)
        assert words in outcome.err.strip().splitlines()[-1]
        assert "Traceback" not in outcome.err
    coded = cli(*extract_arguments(weights, f"imagefolder:{few}", "--views", "flip", "--dtype", "int8"))
    assert coded.status == 2
    assert "--views cannot be stored as int8" in coded.err
    assert not list((tmp_path / "root").rglob("manifest.json"))


def test_a_dry_run_names_views_and_an_image_that_fails_has_none(cli, weights, few, tmp_path):
    folder = shutil.copytree(few, tmp_path / "photos")
    (folder / "green" / "003.png").write_bytes(b"no image")
    arguments = (*extract_arguments(weights, f"imagefolder:{folder}"), "--views", "flip,scale176")
    dry = cli(*arguments, "--dry-run")
    assert "scale176: scale, input size 176" in dry.out
    done = cli(*arguments, "--on-error", "skip", "--json")
    cache = package.open(json.loads(done.out)["path"])
    for split in cache.values():
        for view in split.image_views:
            missing = np.isnan(split.load("every", "cls+ap", view=view)).all((1, 2, 3))
            assert np.array_equal(missing, ~split.valid()), view
    assert sum((~split.valid()).sum() for split in cache.values()) == 1


def test_a_part_of_the_views_is_pulled_and_completed(cli, weights, few, tmp_path, monkeypatch):
    made = run(cli, weights, few, "--views", "flip,crop1,crop2")
    (tmp_path / "team").mkdir()
    team = f"file://{tmp_path}/team"
    name = "/".join(made["path"].split("/")[-2:])
    assert cli("push", made["path"], team).status == 0
    monkeypatch.setenv("FEATCACHE_ROOT", str(tmp_path / "mine"))
    unknown = cli("pull", f"{team}/{name}", "--views", "flop")
    assert unknown.status == 2
    assert "unknown view 'flop'" in unknown.err
    assert cli("pull", f"{team}/{name}", "--views", "plain,flip").status == 0
    part = package.open(tmp_path / "mine" / name)
    assert part["train"].image_views == ("plain", "flip")
    assert cli("verify").status == 0
    probe = ("probe", "--head", "ridge", "--protocol", "quick", "--layers", "last", "--cache", name)
    lacking = cli(*probe, "--views", "plain,crop1")
    assert lacking.status == 1
    assert "--views crop1" in lacking.err
    assert cli(*probe, "--views", "plain,flip").status == 0
    # From the remote itself a probe fetches only the views that it needs.
    monkeypatch.setenv("FEATCACHE_ROOT", str(tmp_path / "third"))
    borrowed = cli(*probe[:-1], f"{team}/{name}", "--views", "crop2")
    assert borrowed.status == 0, borrowed.err
    assert package.open(tmp_path / "third" / name)["train"].image_views == ("plain", "crop2")
    assert cli("pull", f"{team}/{name}").status == 0
    assert content_of(tmp_path / "third" / name).keys() >= content_of(made["path"]).keys()


def test_an_export_holds_the_plain_view_alone_and_says_so(cli, weights, few, tmp_path):
    made = run(cli, weights, few, "--views", "flip", "--tokens", "cls,ap,max")
    done = cli("export", made["path"], "--to", "h5", "--out", tmp_path / "out.h5")
    assert done.status == 0, done.err
    left_out = "final_max, flip-final, flip-final_max, flip-norm2, flip-norm2_max, norm2_max"
    assert f"note: class token and average of the plain view are exported; left out: {left_out}" in done.err
    train = package.open(made["path"])["train"]
    with h5py.File(tmp_path / "out.h5") as file:
        arrays = {name for name, dataset in file["train"].items() if dataset.ndim == 4}
        assert arrays == {"norm2", "final"}
        np.testing.assert_array_equal(file["train/final"][:], train.load("final", "cls+ap"))


def test_heads_are_trained_on_views_and_name_them(cli, weights, few, tmp_path):
    made = run(cli, weights, few, "--views", "flip,crop1")
    heads = ("--head", "ridge,knn,logreg", "--layers", "last", "--baselines", "trained")
    arguments = ("probe", *heads, "--protocol", "quick", "--json")
    told = cli(*arguments[:-1])
    assert "note: the plain view of each image is taken; the cache also holds crop1, flip" in told.err
    plain = cli(*arguments)
    assert all("views" not in row for row in json.loads(plain.out))
    rows = json.loads(cli(*arguments, "--views", "all").out)
    assert rows[0]["run"] == json.loads(plain.out)[0]["run"], "the baseline sees the plain view"
    cache = package.open(made["path"])
    for row in rows[1:]:
        assert row["views"] == ["plain", "crop1", "flip"]
        assert (row["train_samples"], row["test_samples"]) == (18, 6)
        head = package.load_head(Path("featcache-results") / row["folder"])
        assert head.views == ("plain", "crop1", "flip")
        assert head.score(cache).scores["nll"] == pytest.approx(row["scores"]["nll"], abs=1e-5)
        arrays = {
            view: cache["test"].load(row["layer_names"], "+".join(row["tokens"]), view=view)
            for view in head.views
        }
        probabilities = head.predict_proba(arrays)
        np.testing.assert_allclose(probabilities, head.predict_proba(cache), atol=1e-6)
        with pytest.raises(package.errors.RequestError, match=r"trained on views plain\+crop1\+flip"):
            head.predict(arrays["plain"])
        with pytest.raises(package.errors.RequestError, match="the features are of view flip"):
            head.predict({"flip": arrays["flip"]})
    results = cli("results")
    assert "plain+crop1+flip" in results.out
    only = cli("results", "--views", "plain+crop1+flip", "--view", "runs", "--json")
    assert {row["run"] for row in json.loads(only.out)} == {row["run"] for row in rows[1:]}
    assert cli("probe", "--head", "ridge", "--views", "flop").status == 2
    # A cache without the views is refused by the head.
    bare = package.open(run(cli, weights, few, "--root", tmp_path / "bare")["path"])
    with pytest.raises(
        package.errors.RequestError, match=r"holds no view crop1, flip; .* --views crop1,flip adds"
    ):
        head.predict(bare)


def test_an_addition_of_views_that_is_killed_is_resumed(cli, weights, images, tmp_path):
    arguments = ("--batch-size", 8, "--workers", 1, "--tokens", "cls,ap,max")
    made = run(cli, weights, images, *arguments)
    copy = shutil.copytree(tmp_path / "root", tmp_path / "copy")
    run(cli, weights, images, *arguments, "--views", "flip,scale176")
    command = extract_arguments(weights, f"imagefolder:{images}", *arguments, "--views", "flip,scale176")
    process = featcache(
        *command, "--root", copy, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            if any(copy.glob("*/*/journal/*.?????.claim")):
                break
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1.5))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (folder,) = copy.glob("*/*")
    assert package.open(folder)["train"].num_samples == 90, "readers see the cache of before"
    resumed = run(cli, weights, images, *arguments, "--views", "flip,scale176", "--root", copy)
    assert Path(resumed["path"]) == folder
    assert content_of(folder) == content_of(made["path"])
