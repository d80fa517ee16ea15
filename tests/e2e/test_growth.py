"""Growing datasets and datasets without labels, from the command line."""

import json
import shutil

import pytest

import featcache
from featcache.extraction.sources import file_states

from .conftest import MODEL, make_images


@pytest.fixture(autouse=True)
def records_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(file_states, "_SETTLED_NS", 0)


def test_a_second_extract_of_a_grown_folder(cli, weights, tmp_path):
    folder = make_images(tmp_path / "photos", {"blue": 12, "red": 12})
    command = (
        "extract",
        "--model",
        MODEL,
        "--weights",
        weights,
        "--dataset",
        f"imagefolder:{folder}",
        "--device",
        "cpu",
    )
    first = cli(*command)
    assert first.status == 0, first.err
    more = make_images(tmp_path / "more", {"blue": 3}, seed=1)
    for path in (more / "blue").iterdir():
        shutil.move(path, folder / "blue" / f"new-{path.name}")
    planned = json.loads(cli(*command, "--dry-run", "--json").out)
    assert (planned["samples_to_extract"], planned["samples_to_reuse"]) == (27, 24)
    second = cli(*command)
    assert second.status == 0, second.err
    assert "24 of 27 images lie in files that are unchanged since and are not decoded again" in second.err
    assert "24 of them reused from other caches" in second.out
    info = cli("info", second.out.split("cache: ")[1].strip())
    assert "'rows': 24" in info.out
    refused = cli(*command, "--reuse", "nope", "--split-seed", 1)
    assert (refused.status, refused.out) == (2, "")
    assert "no cache matches nope" in refused.err


def test_images_without_labels_are_read_shared_and_refused_by_probe(cli, weights, tmp_path):
    folder = make_images(tmp_path / "photos", {"blue": 8})
    command = ("--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{folder / 'blue'}")
    made = cli("extract", *command, "--device", "cpu")
    assert made.status == 0, made.err
    assert "blue has no labels: its images are taken without (as with --target none)" in made.err
    cache = featcache.open(made.out.split("cache: ")[1].strip())
    assert cache["train"].load("last", "cls").shape == (6, 1, 1, 64)
    assert "labels    none" in cli("info", cache.directory).out
    assert cli("verify", cache.directory, "--recompute", 2, *command[2:]).status == 0
    probed = cli("probe", "--cache", cache.directory, "--head", "ridge")
    assert (probed.status, probed.out) == (2, "")
    assert "has no labels; attach some with `featcache label CACHE labels.csv`" in probed.err
