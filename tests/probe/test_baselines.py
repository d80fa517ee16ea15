"""The baselines beside which heads are shown: the linear probe solved and trained, and the solved probe on the best single layer."""

import numpy as np
import pytest
import torch

import featcache
from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.run import probe
from featcache.probing.run_plan import ProbeContext, size_note
from featcache.probing.training import full_batch
from featcache.store.errors import CacheError, RequestError, UnknownNameError
from support.caches import make_content, make_plan, write_cache

from .recording_reporter import RecordingReporter

ONLY = "2"
"""The layer that tells the classes apart."""


def content_of(plan, targets=None):
    """Noise everywhere but in the class token of one layer."""
    content = make_content(plan)
    for columns in content.values():
        centres = 3 * np.random.default_rng(1).standard_normal((3, 8))
        labels = columns["label"]
        columns["norm2"][:, int(ONLY), 0] += centres[labels].astype(columns["norm2"].dtype)
        if targets is not None:
            columns["label"] = targets(labels)
    return content


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    plan = make_plan({"train": 120, "test": 60}, num_layers=4, width=8)
    return write_cache(tmp_path_factory.mktemp("cache") / "made", plan, content_of(plan))


def ask(head="ncm", **settings):
    return ProbeRequest(heads=(head,), protocol="quick", **settings)


def test_every_probe_has_them_first_and_gains_are_over_both_probes(cache, tmp_path):
    heard = RecordingReporter()
    rows = probe(cache, ask(out=tmp_path), reporter=heard)
    trained, solved, best, ncm = rows
    assert [row.head for row in rows] == ["linear", "logreg", "best-layer", "ncm"]
    assert [row.solver for row in rows] == ["adamw", "exact", "layer", "closed"]
    assert {(row.layers, row.tokens, row.input) for row in (trained, solved)} == {("last", ("cls",), "l2")}
    assert (trained.gain, solved.gain_over_solved) == (0, 0)
    for row in rows:
        assert row.gain == pytest.approx(row.score - trained.score)
        assert row.gain_over_solved == pytest.approx(row.score - solved.score)
    assert best.kept_layers == (ONLY,)
    assert best.score > solved.score + 0.2
    assert any(f"chose layer {ONLY}" in text for text in heard.messages)
    assert ncm == probe(cache, ask(out=tmp_path))[-1], "taken from the results"


def test_the_head_on_the_best_layer_is_the_solved_head_of_that_layer(cache, tmp_path):
    best = probe(cache, ask("best-layer", baselines="none", out=tmp_path))[0]
    alone = probe(cache, ask("logreg", layers=ONLY, tokens="cls", baselines="none", out=tmp_path))[0]
    assert (best.score, best.penalty, best.scores) == (alone.score, alone.penalty, alone.scores)
    head = featcache.load_head(tmp_path / best.folder)
    assert (head.layers, head.tokens) == ((ONLY,), ("cls",)), "no other layer is needed to predict"
    assert head.score(cache).scores["balanced_accuracy"] == pytest.approx(best.score)


@pytest.mark.parametrize(
    ("targets", "metric"),
    [
        (lambda labels: labels[:, None] * np.float32([[1.0, -2.0]]) + 5, "r2"),
        (lambda labels: np.eye(3, dtype=np.uint8)[labels], "mean_average_precision"),
    ],
    ids=["regression", "label sets"],
)
def test_other_targets_are_solved_by_ridge(tmp_path, monkeypatch, targets, metric):
    plan = make_plan({"train": 120, "test": 60}, num_layers=4, width=8)
    cache = write_cache(tmp_path / "made", plan, content_of(plan))
    reader = type(cache["train"])
    original = reader.labels
    monkeypatch.setattr(reader, "labels", lambda self: targets(original(self)))
    kind = "regression" if metric == "r2" else "multi-label"
    rows = probe(cache, ask("knn", target_kind=kind, out=tmp_path / "out"))
    assert [row.head for row in rows] == ["linear", "ridge", "best-layer", "knn"]
    assert {row.metric for row in rows} == {metric}
    assert rows[2].kept_layers == (ONLY,)
    assert rows[2].score > rows[1].score


def test_those_that_are_named_are_fitted_and_no_others(cache, tmp_path):
    def heads(baselines):
        return [job.head.name for job in jobs(cache, ask("ncm", baselines=baselines))]

    assert heads("none") == ["ncm"]
    assert heads("solved") == ["logreg", "ncm"]
    assert heads("best-layer,trained") == ["linear", "best-layer", "ncm"]
    with pytest.raises(UnknownNameError, match="unknown baseline 'solve'; did you mean solved"):
        ask(baselines="solve")
    (row,) = probe(cache, ask(baselines="none", out=tmp_path))
    assert (row.gain, row.gain_over_solved) == (None, None)
    (same, _) = probe(cache, ask("logreg", layers="last", tokens="cls", baselines="trained", out=tmp_path))[
        ::-1
    ]
    assert same.gain_over_solved == 0, "asked for as a head, it is the same baseline"


def test_one_sample_of_each_class_leaves_the_last_layer(cache, tmp_path):
    heard = RecordingReporter()
    row = probe(cache, ask("best-layer", baselines="none", shots=(1,), out=tmp_path), reporter=heard)[0]
    assert row.kept_layers == ("final",)
    assert any(
        "no held-out samples to choose a layer with; the last layer is taken" in text
        for text in heard.messages
    )


def test_baselines_that_nobody_asked_for_are_left_out_where_they_are_too_large(cache, tmp_path, monkeypatch):
    context = ProbeContext.of(cache, ask(), torch.device("cpu"))
    (_, solved, *_) = jobs(cache, ask())
    assert size_note(context, solved) is None
    monkeypatch.setattr("featcache.probing.run_plan.MOST_PRODUCTS", 100)
    assert "--baselines trained,solved,best-layer fits it all the same" in size_note(context, solved)
    heard = RecordingReporter()
    assert [row.head for row in probe(cache, ask("linear", out=tmp_path), reporter=heard)] == ["linear"]
    assert sum("is left out: 120 samples of 8 channels" in text for text in heard.messages) == 2
    monkeypatch.undo()
    monkeypatch.setattr(full_batch, "free_memory", lambda device: 1_000)
    heard = RecordingReporter()
    assert [row.head for row in probe(cache, ask("linear", out=tmp_path), reporter=heard)] == ["linear"]
    assert sum("is left out: logreg on 120 samples of 8 features" in text for text in heard.messages) == 1
    with pytest.raises(RequestError, match="logreg on 120 samples of 8 features"):
        probe(cache, ask("linear", baselines="solved", out=tmp_path))


def test_a_damaged_layer_ends_a_baseline_that_nobody_asked_for_and_no_run(tmp_path):
    plan = make_plan({"train": 120, "test": 60}, num_layers=4, width=8)
    cache = write_cache(tmp_path / "made", plan, content_of(plan))
    (damaged,) = (cache.directory / "features.zarr" / "train" / "norm2").glob("c.0.1.*")
    damaged.unlink()
    heard = RecordingReporter()
    rows = probe(cache, ask(layers="last", out=tmp_path / "out"), reporter=heard)
    assert [row.head for row in rows] == ["linear", "logreg", "ncm"]
    assert any("the baseline best-layer is left out" in text for text in heard.messages)
    with pytest.raises(CacheError):
        probe(cache, ask(layers="last", baselines="best-layer", out=tmp_path / "out"))


def test_a_cache_with_some_layers_says_so(tmp_path):
    from .caches import rich_cache, rich_plan

    some = rich_cache(tmp_path / "some", rich_plan({"train": 90, "test": 40}, groups={}, blocks=("1",)))[0]
    heard = RecordingReporter()
    rows = probe(some, ask(out=tmp_path / "out"), reporter=heard)
    assert [row.head for row in rows] == ["linear", "logreg", "best-layer", "ncm"]
    assert any("best-layer compares 2 of 4 layers" in text for text in heard.messages)
    last = rich_cache(tmp_path / "last", rich_plan({"train": 90, "test": 40}, groups={}, blocks=()))[0]
    heard = RecordingReporter()
    assert len(probe(last, ask(out=tmp_path / "out"), reporter=heard)) == 3
    assert any("best-layer is left out: of 4 layers, 1 is here" in text for text in heard.messages)
