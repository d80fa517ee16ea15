"""Datasets of every kind through the command line into caches: targets, splits, cards, and the way back to the images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featcache
from featcache.extraction.backbones import load_backbone
from featcache.extraction.models.names import resolve_model
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.run import extract
from featcache.extraction.sources.sequences import python_dataset
from featcache.store.catalogue import roots
from support.datasets import CLASSES, SIZES, Items, labels, make_csv, make_folder, make_shards, write_tar

from .conftest import MODEL

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def data_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def run(cli, weights):
    """Extract with the tiny backbone; returns the path of the cache and the outcome."""

    def extract_it(dataset: str, *more: object, status: int = 0):
        arguments = (
            "--model",
            MODEL,
            "--weights",
            weights,
            "--precision",
            "fp32",
            "--workers",
            0,
            "--batch-size",
            8,
        )
        outcome = cli("extract", "--dataset", dataset, *arguments, "--json", *more)
        assert outcome.status == status, outcome.err
        return Path(json.loads(outcome.out)["path"]) if not status else None, outcome

    return extract_it


def test_shards_give_the_features_of_the_same_images_in_a_folder(run, tmp_path):
    shards, folder = make_shards(tmp_path / "flowers", forms=("png",)), make_folder(tmp_path / "folder")
    path, outcome = run("flowers", "--data", shards, "--revision", COMMIT)
    other, _ = run(f"imagefolder:{folder}")
    cache, same = featcache.open(path), featcache.open(other)
    for split in SIZES:
        np.testing.assert_array_equal(cache[split].labels(), labels(split))
        for name, array in cache.inventory.splits[split].arrays.items():
            if array.layers:
                tap, group = (name, "pooled")
                got, wanted = (one[split].view(tap, group) for one in (cache, same))
                np.testing.assert_array_equal(
                    got.load(got.layers, got.tokens), wanted.load(got.layers, got.tokens)
                )
    assert cache.spec.dataset["repository"] == "clip-benchmark/wds_vtab-flowers"
    assert cache.spec.dataset["revision"] == COMMIT
    assert cache.provenance["dataset_names"] == ["flowers"]
    assert str(tmp_path) not in (path / "provenance.json").read_text()
    card = (path / "README.md").read_text()
    assert "| ant | 4 | 2 |" in card
    assert "| cite | M.-E. Nilsback, A. Zisserman" in card
    again, outcome = run("flowers", "--data", shards, "--revision", COMMIT)
    assert (again, json.loads(outcome.out)["cached"]) == (path, True)


def test_several_classes_by_patient_and_back(run, cli, weights, tmp_path):
    columns = {
        "striped": lambda split, row: row % 2,
        "winged": lambda split, row: int(row % 3 == 0),
        "patient": lambda split, row: f"p{row // 2}{split}",
    }
    table = make_csv(tmp_path / "bees.csv", columns)
    path, _ = run(f"csv:{table}", "--group-by", "patient", "--resplit", "--limit", 6)
    cache = featcache.open(path)
    assert cache.inventory.targets.type == "multi-label"
    stored = {
        one: row.tolist()
        for split in SIZES
        for one, row in zip(cache[split].sample_ids(), cache[split].labels(), strict=True)
    }
    lines = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert all(stored[line[0]] == [int(line[2]), int(line[3])] for line in lines if line[0] in stored)
    patient = {line[0]: line[4] for line in lines}
    train, test = ({patient[one] for one in cache[split].sample_ids()} for split in ("train", "test"))
    assert not train & test

    info = cli("info", path.name.rpartition("-")[2])
    assert "classes   2 (multi-label): striped, winged" in info.out
    document = json.loads(cli("info", path.name.rpartition("-")[2], "--json").out)
    assert document["targets"] == {"kind": "multi-label", "names": ["striped", "winged"], "units": []}
    assert document["class_counts"]["train"] == cache["train"].labels().sum(0).tolist()
    assert "## Targets (multi-label)" in (path / "README.md").read_text()

    # The identity says how the dataset was split, so nothing of that has to be given again.
    verified = cli("verify", "--recompute", 4, "--dataset", f"csv:{table}", "--weights", weights)
    assert verified.status == 0, verified.err + verified.out
    # There and back again in another format.
    assert (
        cli("export", path.name.rpartition("-")[2], "--to", "h5", "--out", tmp_path / "bees.h5").status == 0
    )
    back = cli("import", tmp_path / "bees.h5", "--root", tmp_path / "other", "--json")
    assert back.status == 0, back.err
    copy = featcache.open(json.loads(back.out)["path"])
    assert (copy.key, copy.inventory.targets) == (cache.key, cache.inventory.targets)


def test_real_values_reach_the_cache_with_their_units(run, cli, tmp_path):
    columns = {"weight [kg]": lambda split, row: row / 4, "length": lambda split, row: -row}
    table = make_csv(tmp_path / "fish.csv", columns)
    path, _ = run(f"csv:{table}", "--target", "regression")
    cache = featcache.open(path)
    assert (cache.inventory.targets.names, cache.inventory.targets.units) == (
        ("weight", "length"),
        ("kg", ""),
    )
    assert cache["test"].labels().tolist() == [[row / 4, -row] for row in range(5)]
    assert "targets   2 (regression): weight [kg], length" in cli("info").out
    assert "| weight | kg | 1.125 (0 to 2.25) | 0.5 (0 to 1) |" in (path / "README.md").read_text()
    listed = cli("datasets", "show", f"csv:{table}", "--target", "regression")
    assert "weight  kg    0 to 2.25  0 to 1" in listed.out


def test_several_test_splits_are_cached_under_their_names(run, tmp_path):
    table = make_csv(tmp_path / "bees.csv")
    table.write_text(table.read_text().replace(",test,", ",sketch,", 2))
    path, _ = run(f"csv:{table}", "--test-split", "test,sketch")
    assert {name: split.num_samples for name, split in featcache.open(path).inventory.splits.items()} == {
        "train": 10,
        "test": 3,
        "sketch": 2,
    }


def test_a_sequence_of_python_s(weights, tmp_path):
    source = python_dataset({split: Items(split) for split in SIZES}, name="mine", class_names=CLASSES)
    request = ExtractRequest(MODEL, "mine", weights=weights, precision="fp32", batch_size=8, workers=2)
    first = extract(request, roots(), source=source)
    assert extract(request, roots(), source=source).cached
    cache = featcache.open(first.path)
    assert cache.inventory.class_names == CLASSES
    assert first.path.parent.name == "mine"
    assert cache["test"].sample_ids() == [f"test/{row}" for row in range(5)]
    assert load_backbone(resolve_model(MODEL), weights).spec.with_upright(True) == cache.spec.backbone


def test_a_look_before_the_run(cli, tmp_path):
    shards = make_shards(tmp_path / "flowers")
    write_tar(shards / "test" / "1.tar", [("s4.png", b"no image"), ("s4.cls", b"2")])
    shown = cli("datasets", "show", "flowers", "--data", shards, "--sheet", tmp_path / "sheet.png")
    assert shown.status == 0, shown.err
    assert "flowers: 10 train, 4 test; 3 classes (single-label)" in shown.out
    assert "    0  ant        4     2" in shown.out
    assert "note: image test/1/s4 in" in shown.out
    assert "\\n" not in shown.out  # an escaped end of line
    assert f"contact sheet: {tmp_path}/sheet.png" in shown.out
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(2**16)}
    assert {(200, 10 * row, 77) for row in range(10)} <= colours  # every train image
    assert (200, 60, 60) in colours  # and a frame where one does not decode


def test_the_list(cli, tmp_path):
    make_shards(tmp_path / "data" / "flowers")
    listed = cli("datasets", "--only", "natural (single", "--json")
    found = {one["alias"]: one for one in json.loads(listed.out)}
    assert list(found) == ["pets", "flowers", "cars", "fgvc-aircraft", "gtsrb", "svhn"]
    assert found["flowers"]["on_disk"] == str(tmp_path / "data" / "flowers")
    assert (found["pets"]["on_disk"], found["pets"]["licence"]) == (None, "CC BY-SA 4.0")
    text = cli("datasets").out
    assert (
        len(
            [line for line in text.splitlines() if "natural" in line or "struct" in line or "special" in line]
        )
        == 20
    )
    assert "diabetic-retinopathy" in text
    assert "?" in next(line for line in text.splitlines() if line.startswith("dmlab"))


def test_a_wrong_request_ends_before_anything_is_loaded(cli, tmp_path):
    outcome = cli("extract", "--model", "vit-l-14", "--dataset", "wds:nowhere.tar")
    assert outcome.status == 1
    assert outcome.err.endswith("featcache: nowhere.tar: 1 shards do not exist: nowhere.tar\n")
    outcome = cli("datasets", "--only", "flowerz", "--json")
    assert outcome.status == 2
    assert "unknown dataset or domain 'flowerz'; did you mean flowers" in outcome.err
    outcome = cli("extract", "--model", "vit-l-14", "--dataset", "flower")
    assert outcome.status == 2
    assert "did you mean flowers" in outcome.err
    for option in (("--group-by", "writer"), ("--test-split", "val"), ("--resplit",)):
        outcome = cli("extract", "--model", "vit-l-14", "--dataset", "digits", *option)
        assert outcome.status == 2
        assert f"digits has neither columns nor splits of its own; leave {option[0]} out" in outcome.err
