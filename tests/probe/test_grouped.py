"""Samples of one group are held out together when settings are chosen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.probing.estimators import HeadProbe, HeadRegressor
from featcache.probing.heads import get_head
from featcache.probing.inputs.grouped import grouped_folds, grouped_holdout, groups_of, read_groups
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.rows import ResultRow
from featcache.probing.run import probe
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.store.errors import RequestError
from support.caches import make_content, make_plan, write_cache

from .recording_reporter import RecordingReporter

SHORT = replace(QUICK, min_epochs=1, min_steps=20, learning_rates=(1e-2,), weight_decays=(1e-4,))
N = 240
RNG = np.random.default_rng(0)
GROUPS = RNG.integers(0, 40, N)
LABELS = RNG.integers(0, 4, N)
TARGETS = {
    "single-label": LABELS,
    "multi-label": (RNG.random((N, 5)) < 0.3).astype(np.float32),
    "regression": RNG.normal(size=(N, 2)).astype(np.float32),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target_type", TARGETS)
def test_groups_stay_together_and_parts_keep_their_shares(target_type: str, seed: int) -> None:
    targets = TARGETS[target_type]
    train, held = grouped_holdout(targets, GROUPS, 0.2, seed)
    assert not {*GROUPS[train]} & {*GROUPS[held]}
    assert sorted([*train, *held]) == list(range(N))
    assert abs(len(held) - 48) <= 8
    folds = grouped_folds(targets, GROUPS, 4, seed)
    assert sorted(np.concatenate([rows for _, rows in folds])) == list(range(N))
    for part, rows in folds:
        assert not {*GROUPS[part]} & {*GROUPS[rows]}
        assert abs(len(rows) - 60) <= 12
    if target_type == "single-label":
        counts = np.bincount(LABELS[held], minlength=4) / np.bincount(LABELS)
        assert abs(counts - 0.2).max() < 0.1


def test_a_class_of_one_group_is_never_held_out() -> None:
    labels = LABELS.copy()
    labels[GROUPS == 3] = 9
    for seed in range(10):
        train, _ = grouped_holdout(labels, GROUPS, 0.2, seed)
        assert (labels[train] == 9).sum() == (labels == 9).sum()
        for part, _ in grouped_folds(labels, GROUPS, 3, seed):
            assert {*labels[part]} == {*labels}
    with pytest.raises(RequestError, match="no group can be held out"):
        grouped_holdout(labels, np.zeros(N), 0.2, 0)
    with pytest.raises(RequestError, match="fill 2 of 4 folds"):
        grouped_folds(np.zeros(N, int), np.arange(N) % 2, 4, 0)


@pytest.mark.parametrize("head", ["linear", "ridge", "logreg"])
def test_a_head_memorizes_groups_only_where_they_are_not_held_out(head: str) -> None:
    """Features that tell the group, and labels that follow the group: by lot validation is perfect, by groups it is chance."""
    groups = np.repeat(np.arange(60), 4)
    labels = np.random.default_rng(1).permutation(np.arange(60) % 3)[groups]
    tokens = np.random.default_rng(2).normal(size=(60, 1, 64))[groups].astype(np.float32)
    job = array_job(get_head(head), 1)
    protocol = replace(SHORT, min_steps=200, learning_rates=(0.1,), jitter_probability=0.0)
    apart, together = (
        fit_head(job, InMemoryTokens(tokens), labels, protocol=protocol, groups=known).validation
        for known in (None, groups)
    )
    assert apart > 0.9
    assert together < 0.7


def test_estimators_take_groups() -> None:
    tokens = RNG.normal(size=(N, 8)).astype(np.float32)
    first = HeadProbe("ridge", protocol=SHORT).fit(tokens, LABELS)
    grouped = HeadProbe("ridge", protocol=SHORT).fit(tokens, LABELS, groups=GROUPS.astype(str))
    assert grouped.validation_score_ != first.validation_score_
    HeadRegressor("ridge", protocol=SHORT).fit(tokens, tokens[:, 0], groups=GROUPS)
    with pytest.raises(RequestError, match="240 samples need as many groups, not 3"):
        HeadProbe("ridge", protocol=SHORT).fit(tokens, LABELS, groups=[1, 2, 3])


def test_a_file_of_groups(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("group,sample_id\nanna,a\nbert,b\nanna,c\n")
    assert groups_of(["c", "b"], read_groups(path)).tolist() == ["anna", "bert"]
    with pytest.raises(RequestError, match=r"1 of 2 train samples have no group, the first is d"):
        groups_of(["a", "d"], read_groups(path))
    for text, message in (
        ("id,group\na,b\n", "must have the columns sample_id and group"),
        ("sample_id,group\na,\n", "line 2: sample_id or group is empty"),
        ("sample_id,group\na,b\na,c\n", "line 3: a has a second group"),
    ):
        path.write_text(text)
        with pytest.raises(RequestError, match=message):
            read_groups(path)
    with pytest.raises(RequestError, match="cannot be read"):
        read_groups(tmp_path / "none.csv")


def test_a_probe_holds_groups_out_and_says_when_it_does_not_know_them(tmp_path: Path) -> None:
    plan = make_plan(width=8, group_by="patient")
    cache = write_cache(tmp_path / "cache", plan, make_content(plan))
    ids = cache["train"].sample_ids()
    path = tmp_path / "groups.csv"
    path.write_text("sample_id,group\n" + "".join(f"{one},{index // 10}\n" for index, one in enumerate(ids)))

    def run(**changes: Any) -> tuple[ResultRow, list[str]]:
        heard = RecordingReporter()
        request = ProbeRequest(
            heads=("ridge",), layers="last", tokens="cls", protocol="quick", out=tmp_path / "out", **changes
        )
        return probe(cache, request, reporter=heard)[-1], heard.messages

    unknown, told = run()
    assert any("divided by groups of patient" in text for text in told)
    known, told = run(groups=path)
    assert not any("divided by groups" in text for text in told)
    assert known.run != unknown.run
    assert known.setup != unknown.setup
    again, told = run(groups=path)
    assert again.run == known.run
    path.write_text(path.read_text().replace(",0\n", ",1\n"))
    assert run(groups=path)[0].run != known.run


def test_ids_of_several_lines_and_what_is_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_bytes('sample_id,group\n"a\r\nb",1\n"c\u2028d",2\n'.encode())
    assert read_groups(path) == {"a\r\nb": "1", "c\u2028d": "2"}
    path.write_text("sample_id,group\n" + "x" * 200_000 + ",1\n")
    with pytest.raises(
        RequestError, match=r"groups.csv is no CSV after line 1: field larger than field limit"
    ):
        read_groups(path)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([None, *range(N - 1)], "1 samples have no group, the first is row 0"),
        ([*range(N - 2), np.nan, np.nan], "2 samples have no group, the first is row 238"),
        (np.array([1, "a"] * (N // 2), object), "all numbers or all text"),
    ],
)
def test_estimators_take_one_group_of_every_sample(groups: Any, message: str) -> None:
    features = RNG.normal(size=(N, 4)).astype(np.float32)
    with pytest.raises(RequestError, match=message):
        HeadProbe("ridge", protocol=SHORT).fit(features, LABELS, groups=groups)
