"""What version 0.1.0 wrote still opens, verifies, resumes, is listed and scored, and its keys are those of today."""

import csv
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import featcache
from compat import inputs
from compat.make import EXTRACTED, UNFINISHED, extract_arguments, values_digest
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.dataset_options import DatasetOptions
from support.caches import all_files
from support.running import command_line, one_torch_thread

ARCHIVE = Path(__file__).parent / "v0.1.0.tar.xz"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """What was written, not to be changed."""
    folder = tmp_path_factory.mktemp("v0.1.0")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(unpacked, tmp_path) -> Path:
    """A copy of what was written."""
    return Path(shutil.copytree(unpacked, tmp_path / "old"))


@pytest.fixture(scope="module")
def expected(unpacked) -> dict:
    return json.loads((unpacked / "expected.json").read_text())


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, str]:
    """The datasets that were read, written anew: the value of ``--dataset`` by form."""
    return inputs.write_all(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return inputs.write_weights(tmp_path_factory.mktemp("weights") / "weights.safetensors")


@pytest.fixture
def cli(monkeypatch, capsys):
    return command_line(monkeypatch, capsys)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with one_torch_thread():
        yield


def form_options(form: str) -> DatasetOptions:
    return (
        DatasetOptions(target=form) if form in (inputs.REGRESSION, inputs.MULTI_LABEL) else DatasetOptions()
    )


def test_identities_are_those_of_before(datasets, expected):
    assert set(datasets) == set(expected["identities"])
    for form, dataset in datasets.items():
        assert dict(resolve_source(dataset, form_options(form)).identity) == expected["identities"][form], (
            form
        )


@pytest.mark.parametrize("form", EXTRACTED)
def test_caches_open_and_verify(form, unpacked, expected, cli):
    cache = unpacked / "root" / expected["caches"][form]["name"]
    assert values_digest(cache) == expected["caches"][form]["values"]
    verified = cli("verify", cache)
    assert verified.status == 0, verified.err
    assert cli("info", cache).status == 0


def test_caches_are_listed(unpacked, expected, cli):
    states = {
        entry["key"]: entry["state"]
        for entry in json.loads(cli("ls", "--root", unpacked / "root", "--json").out)
    }
    keys = {cache["name"].rpartition("-")[2] for cache in expected["caches"].values()}
    assert {key: states[key] for key in keys} == dict.fromkeys(keys, "complete")
    (unfinished,) = states.keys() - keys
    assert states[unfinished] == "incomplete (1 of 3 blocks)"


@pytest.mark.parametrize("form", EXTRACTED)
def test_the_same_command_finds_the_cache(form, old, datasets, weights, expected, cli):
    before = all_files(old / "root" / expected["caches"][form]["name"] / "features.zarr")
    arguments = extract_arguments(form, datasets[form], weights, old / "root")
    answer = cli(*arguments, "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert found["path"].endswith(expected["caches"][form]["name"])
    assert found["cached"] is True
    assert all_files(Path(found["path"]) / "features.zarr") == before


def test_an_unfinished_cache_is_resumed(old, datasets, weights, cli):
    before = all_files(old / "root" / "arrays")
    answer = cli(*extract_arguments(UNFINISHED, datasets[UNFINISHED], weights, old / "root"), "--json")
    assert answer.status == 0, answer.err
    done = json.loads(answer.out)
    assert done["samples"] == sum(inputs.ROWS.values()) - 128
    path = Path(done["path"])
    assert path.parent == old / "root" / "arrays"
    after = all_files(old / "root" / "arrays")
    chunks = {name: data for name, data in before.items() if "/c." in name and not name.endswith(".partial")}
    assert chunks
    assert {name: after[name] for name in chunks} == chunks
    assert cli("verify", path).status == 0


def test_a_partial_copy_is_read_and_completed_from_the_remote(old, expected, cli):
    name = expected["caches"]["imagefolder"]["name"]
    whole, partial = old / "root" / name, old / "partial" / name
    split, layers = featcache.open(partial)["test"], ["final"]
    np.testing.assert_array_equal(
        split.load(layers, ["cls"]), featcache.open(whole)["test"].load(layers, ["cls"])
    )
    assert cli("verify", partial).status == 0
    listed = json.loads(cli("ls", old / "remote", "--json").out)
    assert [(entry["key"], entry["dataset"]) for entry in listed] == [(name.rpartition("-")[2], "folder")]
    pulled = cli("pull", f"file://{old / 'remote' / name}", "--root", old / "partial")
    assert pulled.status == 0, pulled.err
    assert all_files(partial / "features.zarr") == all_files(whole / "features.zarr")
    assert values_digest(partial) == expected["caches"]["imagefolder"]["values"]
    assert cli("verify", partial).status == 0


def test_a_pushed_cache_is_pulled(old, expected, tmp_path, cli):
    name = expected["caches"]["imagefolder"]["name"]
    pulled = cli("pull", f"file://{old / 'remote' / name}", "--root", tmp_path / "mine")
    assert pulled.status == 0, pulled.err
    assert values_digest(tmp_path / "mine" / name) == expected["caches"]["imagefolder"]["values"]


def result_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_saved_heads_predict_what_they_predicted(unpacked, expected):
    folders = {cache["name"].partition("/")[0]: cache["name"] for cache in expected["caches"].values()}
    rows = result_rows(unpacked / "results")
    assert {row["head"] for row in rows} == {"linear", "attentive", "ridge", "logreg", "knn", "lda"}
    for row in rows:
        head = featcache.load_head(unpacked / "results" / row["folder"])
        cache = featcache.open(unpacked / "root" / folders[row["dataset"]])
        assert head.score(cache).scores == pytest.approx(row["scores"], abs=1e-4), row["head"]
        with (unpacked / "results" / row["folder"] / "predictions.csv").open() as file:
            recorded = list(csv.DictReader(file))
        assert len(recorded) == row["test_samples"]
        if row["target_kind"] == "single-label":
            assert head.predict(cache).tolist() == [int(record["predicted"]) for record in recorded], row[
                "head"
            ]


def test_results_are_listed_and_plotted(old, cli):
    listed = json.loads(cli("results", old / "results", "--view", "runs", "--json").out)
    rows = result_rows(old / "results")
    assert sorted((row["dataset"], row["head"]) for row in listed) == sorted(
        (row["dataset"], row["head"]) for row in rows
    )
    scores = {(row["dataset"], row["head"]): row["score"] for row in rows}
    for row in listed:
        assert row["score"] == pytest.approx(scores[row["dataset"], row["head"]], abs=1e-6), row["head"]
    plotted = cli("plot", old / "results")
    assert plotted.status == 0, plotted.err
