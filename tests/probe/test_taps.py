"""Heads on tokens from another place in the blocks than the second norm."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import featcache
from featcache.cli.probe_table import rows_table
from featcache.probing.inputs.data import load_split
from featcache.probing.report.groups import group_rows
from featcache.probing.requests.jobs import jobs, needed
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.run import probe
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.reading.reader import Cache

from .caches import WIDTH, rich_cache, rich_plan

HIDDEN = 4 * WIDTH
TAPS = {"norm2": WIDTH, "block": WIDTH, "mlp": HIDDEN}


@pytest.fixture(scope="module")
def cache_and_content(tmp_path_factory):
    plan = rich_plan(groups={"patches": ("1",)}, taps=TAPS)
    return rich_cache(tmp_path_factory.mktemp("cache") / "made", plan)


@pytest.fixture(scope="module")
def cache(cache_and_content) -> Cache:
    return cache_and_content[0]


def ask(layers: str, tap: str, tokens: str = "cls+ap", **settings) -> ProbeRequest:
    return ProbeRequest(
        heads=("linear",),
        layers=layers,
        tokens=tokens,
        tap=tap,
        protocol="quick",
        baselines="trained",
        **settings,
    )


@pytest.mark.parametrize(
    ("layers", "tap", "arrays"),
    [
        ("1,final", "block", [("block", 1), ("final", 0)]),
        ("1,final", "norm2", [("norm2", 1), ("final", 0)]),
        ("3,0", "mlp", [("mlp", 3), ("mlp", 0)]),
    ],
)
def test_tokens_are_those_of_the_tap(cache_and_content, layers, tap, arrays):
    cache, content = cache_and_content
    selection = jobs(cache, ask(layers, tap))[-1].selection
    tokens = load_split(cache, "train", selection, "cpu").tokens
    written = [content["train"][name][:, index] for name, index in arrays]
    want = torch.from_numpy(np.concatenate(written, axis=1)).float()
    torch.testing.assert_close(tokens.batch(torch.arange(300)), F.normalize(want, dim=-1))
    streamed = load_split(cache, "train", selection, "cpu", memory=4096).tokens
    torch.testing.assert_close(streamed.batch(torch.arange(300)), F.normalize(want, dim=-1))


def test_a_head_remembers_its_tap(cache, tmp_path):
    rows = probe(cache, ask("1,2", "mlp", out=tmp_path))
    assert [row.tap for row in rows] == ["final", "mlp"]
    assert rows[1].parameters == 4 * HIDDEN * 3 + 3
    columns, lines = rows_table(rows, grid=False)
    assert [line[columns.index("tokens")] for line in lines] == ["cls", "cls+ap of mlp"]
    head = featcache.load_head(tmp_path / rows[1].folder)
    assert head.tap == "mlp"
    assert head.score(cache).scores["balanced_accuracy"] == pytest.approx(rows[1].score)
    hidden = cache["test"].view("mlp").load(head.layers, head.tokens)
    np.testing.assert_allclose(head.predict_proba(hidden), head.predict_proba(cache), atol=1e-6)
    with pytest.raises(RequestError, match=r"takes features \[N, 2, 2, 64\]: layers 1, 2, tap mlp"):
        head.predict(cache["test"].load(["1", "2"], ["cls", "ap"]))


def test_taps_are_runs_of_their_own(cache, tmp_path):
    rows = [row for tap in ("norm2", "block") for row in probe(cache, ask("1,2", tap, out=tmp_path))]
    assert len({row.run for row in rows}) == 3, "the baseline is the same at every tap"
    groups = group_rows(rows)
    assert [group.first.tap for group in groups] == ["final", "norm2", "block"]
    assert all(len(group.rows) == 1 for group in groups)


def test_a_cache_without_norm2_can_be_probed(tmp_path):
    cache, _ = rich_cache(tmp_path / "cache", rich_plan(groups={}, taps={"block": WIDTH}))
    rows = probe(cache, ask("all", "block", out=tmp_path / "results"))
    assert [row.tap for row in rows] == ["final", "block"]
    with pytest.raises(UnknownNameError, match=r"unknown tap 'norm2'.*block .*--tap adds one"):
        jobs(cache, ask("all", "norm2"))


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (ask("all", "mlp"), RequestError, r"64 channels, one of the final layer 16.*--layers 2,3"),
        (ask("1,2", "mlp", "cls+patches"), RequestError, r"holds patches of final, none of which"),
        (ask("1,2", "attn"), UnknownNameError, r"unknown tap 'attn'; .*--tap adds one"),
    ],
)
def test_what_cannot_be_seen_together(cache, request_, error, message):
    with pytest.raises(error, match=message):
        jobs(cache, request_)


def test_a_tap_that_does_not_exist():
    with pytest.raises(UnknownNameError, match="unknown tap 'atn'; did you mean attn"):
        ask("last", "atn")


def test_only_the_tap_is_fetched(cache):
    inventory = needed(cache.manifest, ask("1,2", "block"))
    held = {name: array.layers for name, array in inventory.splits["train"].arrays.items() if array.layers}
    assert held == {"block": ("1", "2"), "final": ("final",)}
