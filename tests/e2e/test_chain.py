"""Extract, cache, probe: the whole chain through the command line."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import featcache as package
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.results.saved_head import load_head
from support.timing import least_seconds

from .conftest import MODEL, make_images


def extract_arguments(weights, dataset, *more):
    return (
        "extract",
        "--model",
        MODEL,
        "--weights",
        weights,
        "--dataset",
        dataset,
        "--precision",
        "fp32",
        *more,
    )


def test_digits_from_images_to_table(cli, weights, tmp_path):
    extracted = cli(*extract_arguments(weights, "digits", "--limit", 300, "--json"))
    assert extracted.status == 0, extracted.err
    result = json.loads(extracted.out)
    assert (result["cached"], result["samples"]) == (False, 600)

    quick = ("probe", "--protocol", "quick", "--baselines", "trained", "--json")
    probed = cli(*quick, "--head", "linear", "--head", "attentive", "--layers", "all", "--tokens", "cls+ap")
    assert probed.status == 0, probed.err
    rows = json.loads(probed.out)
    assert [(row["head"], row["layers"], row["tokens"]) for row in rows] == [
        ("linear", "last", ["cls"]),
        ("linear", "all", ["cls", "ap"]),
        ("attentive", "all", ["cls", "ap"]),
    ]
    for row in rows:
        assert row["layer_names"] == (
            ["final"] if row["layers"] == "last" else ["1", "2", "3", "4", "5", "final"]
        )
        assert row["cache_key"] == result["key"]
        assert row["gain"] == pytest.approx(row["balanced_accuracy"] - rows[0]["balanced_accuracy"])
        assert (row["train_samples"], row["test_samples"]) == (300, 300)
    # Ten classes, so chance is 0.1; a random backbone's last layer is hardly better than that.
    assert max(row["balanced_accuracy"] for row in rows) > 0.4, [row["balanced_accuracy"] for row in rows]
    # C (T D + 1) for the linear head: 10 classes, 12 tokens of width 64.
    assert rows[1]["parameters"] == 10 * (12 * 64 + 1)
    _check_files(Path("featcache-results"), rows[2], Path(result["path"]))

    again = cli(*quick, "--head", "attentive")
    assert json.loads(again.out) == [rows[0], rows[2]], "what the results hold is not trained again"
    forced = json.loads(cli(*quick, "--head", "linear", "--force").out)
    assert forced[0]["balanced_accuracy"] == rows[0]["balanced_accuracy"], "the seed fixes everything"
    assert forced[0]["finished_at"] > rows[0]["finished_at"]


def _check_files(out, row, cache_path):
    folder = out / row["folder"]
    lines = (out / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == row
    attention = json.loads((folder / "attention.json").read_text())
    assert (attention["layers"], attention["tokens"]) == (row["layer_names"], row["tokens"])
    assert np.sum(attention["weights"]) == pytest.approx(1, abs=1e-4)
    assert (folder / "attention.png").read_bytes().startswith(b"\x89PNG")
    test = package.open(cache_path)["test"]
    predictions = list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
    assert [p["sample_id"] for p in predictions] == test.sample_ids()
    assert [int(p["label"]) for p in predictions] == test.labels().tolist()
    hits = np.array([p["label"] == p["predicted"] for p in predictions])
    assert hits.mean() == pytest.approx(row["top1"])
    # The saved head, applied to the cache by hand, predicts what the run predicted.
    head, config = load_head(folder)
    features = test.load(config.layers, config.tokens)
    tokens = InMemoryTokens(features.reshape(len(features), -1, config.width))
    import torch

    with torch.inference_mode():
        probabilities = head(tokens.batch(torch.arange(len(features)))).squeeze(0).softmax(1)
    assert probabilities.argmax(1).tolist() == [int(p["predicted"]) for p in predictions]
    largest = [float(p["probability"]) for p in predictions]
    np.testing.assert_allclose(probabilities.amax(1).numpy(), largest, atol=1e-4)


def test_a_cached_answer_is_quick_and_needs_no_torch(cli, weights, images):
    arguments = extract_arguments(weights, f"imagefolder:{images}")
    assert cli(*arguments).status == 0
    code = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from featcache.cli import main\n"
        "main()\n"
        "heavy = {'torch', 'timm', 'open_clip', 'torchvision', 'sklearn', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    limits = {"extract": 1.0, "ls": 0.5, "info": 0.5, "--help": 0.5, "--version": 0.5}
    for name, limit in limits.items():
        line = arguments if name == "extract" else (name,)
        seconds, printed = least_seconds([sys.executable, "-c", code, "featcache", *map(str, line)])
        assert seconds < limit, f"{name} took {seconds:.2f} s"
        if name == "extract":
            assert printed.startswith("already cached: ")


def test_alias_explicit_name_and_other_settings(cli, weights, images, tmp_path):
    data = f"imagefolder:{images}"
    first = json.loads(cli(*extract_arguments(weights, data, "--json")).out)
    # Where the folder lies, how many at a time and how the request is spelt do not matter.
    moved = tmp_path / "moved" / images.name
    moved.parent.mkdir()
    moved.symlink_to(images)
    same = json.loads(
        cli(*extract_arguments(weights, f"imagefolder:{moved}", "--batch-size", 7, "--json")).out
    )
    assert same == {**same, "cached": True, "key": first["key"]}
    auto = cli("extract", "--model", MODEL, "--weights", weights, "--dataset", data, "--json")
    assert json.loads(auto.out)["key"] == first["key"], "precision auto accepts whatever a cache has"
    # What fixes values does.
    for more in (("--dtype", "float32"), ("--split-seed", 1), ("--limit", 20)):
        other = json.loads(cli(*extract_arguments(weights, data, *more, "--json")).out)
        assert other["key"] != first["key"]
        assert not other["cached"]


def test_own_splits_and_a_class_that_test_lacks(cli, weights, tmp_path):
    make_images(tmp_path / "data" / "train", {"a": 12, "b": 12, "c": 12})
    make_images(tmp_path / "data" / "test", {"a": 5, "b": 4}, seed=1)
    assert cli(*extract_arguments(weights, "imagefolder:data")).status == 0
    rows = json.loads(cli("probe", "--head", "linear", "--protocol", "quick", "--json").out)
    assert (rows[0]["train_samples"], rows[0]["test_samples"]) == (36, 9)
    info = json.loads(cli("info", "--json").out)
    assert info["inventory"]["class_names"] == ["a", "b", "c"]


def test_seeds_give_rows_and_a_mean(cli, weights, images):
    cli(*extract_arguments(weights, f"imagefolder:{images}"))
    table = cli(
        "probe", "--head", "linear", "--protocol", "quick", "--seeds", "0,1", "--baselines", "trained"
    )
    assert table.status == 0
    lines = table.out.splitlines()
    assert lines[0].split() == [
        "head",
        "layers",
        "tokens",
        "input",
        "seed",
        "balanced",
        "acc",
        "[95",
        "%]",
        "top-1",
        "over",
        "solved",
        "over",
        "trained",
        "chosen",
        "parameters",
        "seconds",
    ]
    assert [line.split()[4] for line in lines[1:4]] == ["0", "1", "mean"]
    assert "(completed last)" in table.err


def test_ls_and_info(cli, weights, images):
    assert "no caches under" in cli("ls").out
    cli(*extract_arguments(weights, f"imagefolder:{images}"))
    line = cli("ls").out.splitlines()[1].split()
    assert line[:2] + line[3:7] == ["colours", "timm-test-vit-r160-in1k", "complete", "90", "30", "7"]
    document = json.loads(cli("ls", "--json").out)[0]
    info = cli("info", document["key"][:5])
    assert f"key       {document['key']}" in info.out
    assert "norm2: float16 [90, 6, 2, 64], layers 0 to 5, tokens cls+ap" in info.out
    assert str(images.parent) not in (Path(document["path"]) / "README.md").read_text()
