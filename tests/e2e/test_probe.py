"""`featcache probe` through the command line: patches, memory, precision, interruption, and heads that load again."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import featcache as package
from featcache.probing.inputs.data import load_split
from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.saved_head import load_head
from featcache.probing.training.prediction import predict

from .conftest import featcache
from .test_chain import extract_arguments
from .test_errors import check

QUICK = ("probe", "--protocol", "quick", "--baselines", "trained")


def rows_of(done) -> list[dict]:
    assert done.status == 0, done.err
    return json.loads(done.out)


def check_saved(out: Path, row: dict, cache: Path) -> None:
    """The saved head gives the predictions that were written along with it."""
    head, config = load_head(out / row["folder"])
    request = ProbeRequest(
        heads=(config.head,), layers=",".join(config.layers), tokens="+".join(config.tokens)
    )
    opened = package.open(cache)
    selection = jobs(opened, request)[-1].selection
    test = load_split(opened, "test", selection, "cpu")
    assert (config.num_tokens, config.options.get("num_heads")) == (selection.num_tokens, row["num_heads"])
    probabilities = predict(head, test.tokens, torch.arange(len(test.labels)), 50).softmax(1)
    predictions = list(csv.DictReader((out / row["folder"] / "predictions.csv").read_text().splitlines()))
    assert [line["sample_id"] for line in predictions] == list(test.sample_ids)
    assert [int(line["predicted"]) for line in predictions] == probabilities.argmax(1).tolist()
    largest = [float(line["probability"]) for line in predictions]
    np.testing.assert_allclose(probabilities.amax(1).numpy(), largest, atol=1e-4)


def test_patches(cli, weights, images, tmp_path):
    extracted = cli(*extract_arguments(weights, f"imagefolder:{images}", "--patches", "4,final", "--json"))
    cache = Path(json.loads(extracted.out)["path"])
    last = rows_of(
        cli(*QUICK, "--head", "attentive", "--layers", "last", "--tokens", "cls+patches", "--json")
    )
    assert (last[1]["layer_names"], last[1]["tokens"], last[1]["num_heads"]) == (
        ["final"],
        ["cls", "patches"],
        8,
    )
    out = Path("featcache-results")
    check_saved(out, last[1], cache)
    every = ("--layers", "3,4,final", "--tokens", "cls+ap+patches", "--num-heads", "4")
    done = cli(*QUICK, "--head", "attentive", "--head", "linear", *every, "--json")
    _, attentive, linear = rows_of(done)
    assert (attentive["num_heads"], linear["num_heads"]) == (4, None)
    assert linear["parameters"] == 3 * ((6 + 200) * 64 + 1)
    attention = json.loads((out / attentive["folder"] / "attention.json").read_text())
    assert (attention["layers"], attention["tokens"]) == (["3", "4", "final"], ["cls", "ap", "patches"])
    assert [row[2] is None for row in attention["weights"]] == [True, False, False]
    assert sum(value for row in attention["weights"] for value in row if value) == pytest.approx(1, abs=1e-4)
    for row in (attentive, linear):
        check_saved(out, row, cache)
        # Blue, green and red noise: more than chance, 1 in 3.
        assert row["balanced_accuracy"] > 0.8
    check(
        cli(*QUICK, "--head", "attentive", "--layers", "2,3", "--tokens", "patches"),
        2,
        "the cache holds patches of 4, final, none of which is asked for",
    )


def test_tokens_that_exceed_the_memory_are_streamed(cli, made):
    # 300 samples of 6 tokens are 57,600 bytes; batches of 60 are 11,520.
    arguments = (*QUICK, "--head", "linear", "--layers", "all", "--tokens", "cls+ap", "--json")
    loaded = cli(*arguments, "--out", "loaded")
    streamed = cli(*arguments[:-1], "--out", "streamed", "--memory", "80kB")
    assert "streamed" not in loaded.err
    # The baseline's single token fits.
    assert [", streamed" in line for line in streamed.err.splitlines() if "members x" in line] == [
        False,
        True,
    ]
    assert streamed.status == 0, streamed.err
    whole, pieces = rows_of(loaded)[1], json.loads(Path("streamed/results.jsonl").read_text().splitlines()[1])
    assert abs(whole["balanced_accuracy"] - pieces["balanced_accuracy"]) < 0.1
    assert pieces["balanced_accuracy"] > 0.6
    check_saved(Path("streamed"), pieces, made)


def test_what_is_asked_for_is_wrong(cli, made):
    linear = (*QUICK, "--head", "linear")
    for arguments, parts in (
        (("--precision", "fp23"), ["unknown precision 'fp23'; did you mean fp32"]),
        (("--num-heads", "4"), ["num-heads is for heads with attention"]),
        (("--layers", ""), ["no layer is named in ''"]),
        (("--tokens", "cls+cls"), ["token kind cls is named more than once in 'cls+cls'"]),
        (("--tokens", "patches"), ["holds no patches of the train split", "--tokens patches adds them"]),
        (
            ("--layers", "all", "--tokens", "cls+ap", "--memory", "20kB"),
            ["three mini-batches of 60 samples, 6 tokens each, do not fit into a memory of"],
        ),
    ):
        check(cli(*linear, *arguments), 2, *parts)
    attentive = (*QUICK, "--head", "attentive", "--num-heads", "17")
    check(cli(*attentive), 2, "divides the token width (16) among its heads (17)", "choose fewer heads")
    for arguments, part in (
        (("--memory", "lots"), "'lots' is not a size; write such as 2GB or 500MB"),
        (("--num-heads", "0"), "--num-heads must be from 1 to 1,048,576, got 0"),
    ):
        outcome = cli(*linear, *arguments)
        assert outcome.status == 2
        assert part in outcome.err.splitlines()[-1]


def unfinished(out: Path) -> list[str]:
    """Names of unfinished sweeps; their folder goes with the last of them."""
    try:
        return [name for name in os.listdir(out / "unfinished") if name.endswith(".json")]
    except FileNotFoundError:
        return []


def test_an_interrupted_sweep_goes_on_with_the_same_result(cli, made):
    """Members train one at a time here, so there are four groups; the signal comes in the second or later."""
    arguments = (*QUICK, "--head", "attentive", "--layers", "all", "--tokens", "cls+ap", "--memory", "80kB")
    whole = rows_of(cli(*arguments, "--out", "whole", "--json"))
    baseline = whole[0]["run"]
    for attempt in range(5):
        out = Path(f"attempt{attempt}")
        process = featcache(*arguments, "--out", out)
        while process.poll() is None:
            if any(baseline not in name for name in unfinished(out)):
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.01)
        _, err = process.communicate()
        # On a busy machine the sweep may be through before the signal comes.
        if process.returncode != 0 and unfinished(out):
            break
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (kept,) = [line for line in err.splitlines() if "the same command goes on" in line]
    number = int(kept.split()[0])
    assert kept.startswith(f"{number} of 4 members are kept")
    assert 1 <= number <= 4

    resumed = cli(*arguments, "--out", out, "--json")
    rows = rows_of(resumed)
    assert cli(*arguments, "--out", out).err.count("taken from earlier results") == 2
    assert not (out / "unfinished").exists()
    for mine, other in zip(rows, whole, strict=True):
        for name in mine.keys() - {"finished_at", "seconds"}:
            assert mine[name] == other[name], name
        for name in ("head.safetensors", "predictions.csv"):
            assert (out / mine["folder"] / name).read_bytes() == (
                Path("whole") / other["folder"] / name
            ).read_bytes()
