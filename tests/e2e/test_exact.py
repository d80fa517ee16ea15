"""`featcache probe --solver exact`: linear heads that are solved for, beside the trained baseline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import featcache
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.results.saved_head import load_head
from featcache.probing.scoring.metrics import balanced_accuracy

from .conftest import MODEL, make_images


@pytest.fixture
def cache(cli, weights, tmp_path) -> Path:
    folder = make_images(tmp_path / "images", {"blue": 24, "green": 24, "red": 24})
    done = cli(
        "extract", "--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{folder}", "--json"
    )
    return Path(json.loads(done.out)["path"])


PROBE = (
    "probe",
    "--head",
    "linear",
    "--layers",
    "all",
    "--tokens",
    "cls+ap",
    "--protocol",
    "quick",
    "--baselines",
    "trained",
)


@pytest.mark.parametrize("penalty", ["l2", "group-lasso"])
def test_a_solved_head_is_scored_and_saved_like_a_trained_one(cli, cache, penalty):
    done = cli(*PROBE, "--solver", "exact", "--penalty", penalty, "--json")
    assert done.status == 0, done.err
    baseline, row = json.loads(done.out)
    assert (baseline["solver"], baseline["penalty"]) == ("adamw", None)
    assert (row["solver"], row["penalty_kind"], row["learning_rate"]) == ("exact", penalty, None)
    assert row["converged"] is True
    assert row["penalty"] > 0

    head, config = load_head(Path("featcache-results") / row["folder"])
    split = featcache.open(cache)["test"]
    features = split.load(config.layers, config.tokens)
    tokens = InMemoryTokens(features.reshape(len(features), -1, config.width))
    logits = head(tokens.batch(torch.arange(len(features))))[0]
    assert balanced_accuracy(logits, torch.from_numpy(split.labels()), 3) == row["balanced_accuracy"]
    of_layer = head.get_parameter("classifier.weight").view(3, len(config.layers), -1).abs().amax((0, 2))
    if penalty == "l2":
        assert row["kept_layers"] is None
        _check_against_scikit_learn(cache, config, row, head)
    else:
        kept = [layer for layer, size in zip(config.layers, of_layer.tolist(), strict=True) if size > 0]
        assert row["kept_layers"] == kept

    again = cli(*PROBE, "--solver", "exact", "--penalty", penalty, "--json")
    assert json.loads(again.out) == [baseline, row], "taken from the results"
    trained = json.loads(cli(*PROBE, "--json").out)[1]
    assert (trained["solver"], trained["run"] != row["run"]) == ("adamw", True)


def _check_against_scikit_learn(cache, config, row, head):
    """The same objective, summed instead of averaged, so its C is 1 / (N * penalty); classes are of equal size."""
    train = featcache.open(cache)["train"]
    features = train.load(config.layers, config.tokens)
    tokens = InMemoryTokens(features.reshape(len(features), -1, config.width))
    x = tokens.batch(torch.arange(len(features))).flatten(1).double().numpy()
    strength = 1 / (len(x) * row["penalty"])
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x, train.labels())
    mine = head(tokens.batch(torch.arange(len(features))))[0].softmax(1).detach().numpy()
    np.testing.assert_allclose(mine, reference.predict_proba(x), atol=5e-3)


def test_the_table_says_which_penalty(cli, cache):
    done = cli(*PROBE, "--solver", "exact")
    assert done.status == 0, done.err
    assert " l2 " in done.out
    lasso = cli(*PROBE, "--solver", "exact", "--penalty", "group-lasso")
    assert "layers left with weight: " in lasso.out


def test_wrong_requests(cli, cache):
    for arguments, message in [
        (("--head", "attentive", "--solver", "exact"), "the exact solver is for linear heads alone"),
        (("--head", "linear", "--solver", "newton"), "unknown solver 'newton'"),
        (("--head", "linear", "--solver", "exact", "--penalty", "l1"), "unknown penalty 'l1'"),
    ]:
        done = cli("probe", "--baselines", "trained", *arguments)
        assert (done.status, done.out) == (2, "")
        assert message in done.err, done.err
