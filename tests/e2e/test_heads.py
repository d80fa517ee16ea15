"""`featcache heads`, `featcache protocols`, and the probes that they lead to: own protocols, input transforms, few shots, auto."""

import json
from pathlib import Path

import numpy as np
import pytest

from featcache.probing.heads import HEADS
from featcache.probing.results.saved_head import load_head
from featcache.store.reading.columns import SplitColumns

from .test_errors import check

PROBE = ("probe", "--protocol", "quick", "--baselines", "trained", "--json")


def rows_of(done) -> list[dict]:
    assert done.status == 0, done.err
    return json.loads(done.out)


def test_heads_are_listed(cli):
    listed = json.loads(cli("heads", "--json").out)
    assert [row["head"] for row in listed] == [info.name for info in HEADS.values() if info.listed]
    assert "blend" not in [row["head"] for row in listed]
    assert all(row["source"] and row["summary"] and row["parameters"] for row in listed)
    table = cli("heads").out.splitlines()
    assert len(table) == 1 + len(listed)
    assert "num_queries=4" in next(line for line in table if line.startswith("efficient"))
    one = cli("heads", "efficient").out
    assert "source:     arXiv 2506.10178" in one
    assert "y_q = sum_t softmax_t(u_q . z_t / sqrt(D)) z_t" in one
    check(cli("heads", "efficent"), 2, "unknown head 'efficent'; did you mean efficient")


def test_a_protocol_is_copied_changed_and_used(cli, made):
    listed = cli("protocols").out
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["paper", "paper-parity", "quick"]
    copied = cli("protocols", "quick").out
    Path("mine.toml").write_text(
        copied.replace(
            "min_steps = 300", 'min_steps = 60\ninput = "standard"\nhalving = 2\nhalving_min_steps = 20'
        )
    )
    done = cli(
        "probe", "--protocol", "mine.toml", "--head", "linear", "--layers", "all", "--tokens", "cls+ap"
    )
    assert done.status == 0, done.err
    assert ": 7 members in 3 rounds x " in done.err, "four, then two that train for twice as long, then one"
    rows = json.loads(cli("probe", "--protocol", "mine.toml", "--head", "linear", "--json").out)
    assert (rows[0]["protocol"], rows[0]["input"]) == ("mine", "standard")
    check(cli("protocols", "quik"), 2, "unknown protocol 'quik'; did you mean quick")
    Path("mine.toml").write_text("halvings = 3")
    check(cli(*PROBE[:1], "--head", "linear", "--protocol", "mine.toml"), 2, "did you mean halving")


def test_every_fit_is_scored_in_every_way_and_saved(cli, made):
    rows = rows_of(cli(*PROBE, "--head", "ridge,knn,logreg,gated", "--input", "standard"))
    assert [row["head"] for row in rows] == ["linear", "ridge", "knn", "logreg", "gated"]
    assert [row["solver"] for row in rows] == ["adamw", "closed", "closed", "exact", "adamw"]
    assert [row["input"] for row in rows] == ["l2"] + ["standard"] * 4, "the baseline stays what it is"
    for row in rows:
        folder = Path("featcache-results") / row["folder"]
        report = json.loads((folder / "scores.json").read_text())
        assert report["scores"] == row["scores"]
        assert np.sum(report["confusion"]) == 90
        assert row["score"] == row["scores"]["balanced_accuracy"] == row["balanced_accuracy"]
        low, high = row["score_interval"]
        assert low <= row["score"] <= high
        sweep = json.loads((folder / "sweep.json").read_text())
        assert sweep["trials"][sweep["chosen"]]["validation"] == pytest.approx(row["validation_score"])
        head, config = load_head(folder)
        assert (config.input, head.input_transform.mean is not None) == (
            row["input"],
            row["input"] == "standard",
        )
    assert rows[1]["score"] > 0.6
    again = rows_of(cli(*PROBE, "--head", "ridge,knn,logreg,gated", "--input", "standard"))
    assert again == rows, "nothing is trained twice"


def test_few_shots(cli, made):
    tokens = ("--layers", "all", "--tokens", "cls+ap")
    done = cli(*PROBE, "--head", "logreg", *tokens, "--shots", "1,5", "--draws", "2")
    rows = rows_of(done)
    assert len(rows) == 2 * 4, "baseline and head, two numbers of shots, two draws"
    for row in rows:
        assert row["train_samples"] == 3 * row["shots"]
        assert row["folds"] == (1 if row["shots"] == 1 else 5)
        assert (row["validation_score"] is None) == (row["shots"] == 1)
    assert (
        "one sample of each class leaves none to choose with"
        in cli(*PROBE[:3], "--head", "ncm", "--shots", "1").err
    )
    losses = {(row["shots"], row["draw"]): row["scores"]["nll"] for row in rows if row["head"] == "logreg"}
    assert losses[5, 0] != losses[5, 1]
    assert [row["gain"] for row in rows if row["head"] == "linear"] == [0.0] * 4


def test_auto_says_what_it_chose(cli, made):
    done = cli("probe", "--head", "auto", "--protocol", "quick", "--seeds", "0", "--baselines", "trained")
    assert done.status == 0, done.err
    (line,) = [line for line in done.err.splitlines() if " chose " in line]
    assert "balanced_accuracy" in line
    assert "on held-out samples of train; " in line
    row = rows_of(cli(*PROBE, "--head", "auto"))[1]
    assert (row["head"], row["solver"]) == ("auto", "auto")
    folder = Path("featcache-results") / row["folder"]
    tried = json.loads((folder / "candidates.json").read_text())
    assert {"logreg", "lda", "attentive"} == {one["head"] for one in tried}
    best = max(one["score"] for one in tried)
    assert row["validation_score"] >= best
    head, config = load_head(folder)
    assert config.head == row["chosen_head"]
    assert head.num_classes == 3


def test_what_is_asked_for_is_wrong(cli, made):
    linear = (*PROBE, "--head", "linear")
    for arguments, parts in (
        ((*PROBE, "--head", "knm"), ["unknown head 'knm'; did you mean ncm, knn"]),
        ((*linear, "--input", "l1"), ["unknown input transform 'l1'; valid: ", "l2"]),
        ((*linear, "--shots", "0"), ["shots are samples of every class, at least 1, not 0"]),
        ((*linear, "--shots", "one"), ["shots must be whole numbers separated by commas, got 'one'"]),
        ((*linear, "--draws", "2"), ["draws are for few-shot runs"]),
        ((*linear, "--folds", "0"), ["folds must be at least 1, not 0"]),
        ((*linear, "--folds", "500"), ["300 samples that can be held out do not make 500 folds"]),
        ((*linear, "--option", "hidden=3"), ["unknown option 'hidden'"]),
        ((*PROBE, "--head", "mlp", "--option", "hidden"), ["an option of a head is such as hidden=512, not 'hidden'"]),
        ((*linear, "--targets", "multilabel"), ["unknown kind of targets 'multilabel'; did you mean multi-label"]),
        ((*PROBE, "--head", "lda", "--targets", "regression"), ["head 'lda' is for single-label targets", "regression"]),
        ((*PROBE, "--head", "ridge", "--layers", "all", "--memory", "200kB"), ["ridge on 300 samples", "needs at least about", "--memory allows 200 kB"]),
        ((*PROBE, "--head", "knn", "--solver", "exact"), ["the exact solver is for linear heads alone"]),
    ):  # fmt: skip
        check(cli(*arguments), 2, *parts)


@pytest.mark.parametrize(
    ("metric", "targets"),
    [
        ("r2", lambda labels: np.stack([20.0 + labels, -3.0 * labels], axis=1).astype(np.float32)),
        ("mean_average_precision", lambda labels: np.eye(3, dtype=np.uint8)[labels] | (labels == 0)[:, None]),
    ],
    ids=["numbers", "label-sets"],
)
def test_other_targets(cli, made, monkeypatch, metric, targets):
    """The columns of a cache with such targets; only their reading is replaced."""
    original = SplitColumns.labels
    monkeypatch.setattr(SplitColumns, "labels", lambda self: targets(original(self)))
    done = cli(*PROBE, "--head", "ridge,knn,attentive")
    rows = rows_of(done)
    for row in rows[1:]:
        assert row["metric"] == metric
        assert row["score"] == row["scores"][metric]
        assert row["score"] > (0.8 if metric != "r2" else 0.3)
        assert row["balanced_accuracy"] is None
        lines = (Path("featcache-results") / row["folder"] / "predictions.csv").read_text().splitlines()
        assert len(lines) == 91
        assert "predicted" in lines[0]
    table = cli("probe", "--protocol", "quick", "--head", "ridge")
    assert {"r2": "R2", "mean_average_precision": "mAP"}[metric] in table.out
    check(cli(*PROBE, "--head", "logreg"), 2, "head 'logreg' is for single-label targets, and these are")
    check(
        cli(*PROBE, "--head", "ridge", "--shots", "5"),
        2,
        "shots are samples of every class, which only single-label",
    )
