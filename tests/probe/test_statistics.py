"""Statistics tokens as heads take them: in their own arrays on disk, beside the other tokens of their layer in a head."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from featcache.probing.inputs.data import load_split
from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.run import probe
from featcache.probing.trained import TrainedHead
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.token_groups import STATISTICS

from .caches import BLOCKS, WIDTH, expected_tokens, rich_cache, rich_plan, select

EVERY = tuple(str(block) for block in range(BLOCKS))
GROUPS = {"sd": EVERY, "max": EVERY, "min": ("3",)}


@pytest.fixture
def cached(tmp_path):
    plan = rich_plan(groups=GROUPS)
    return (*rich_cache(tmp_path / "root" / "made" / f"tiny-{plan.spec.key}", plan), plan)


def test_the_tokens_of_a_layer_stand_together(cached):
    cache, content, plan = cached
    selection = select(cache, "all", "max+cls+sd+ap")
    assert selection.kinds == ("cls", "ap", "sd", "max")
    expected = [(layer, kind) for layer in ("1", "2", "3", "final") for kind in selection.kinds]
    assert selection.places() == expected
    for memory in (None, 20_000):  # loaded at once, and streamed
        data = load_split(cache, "train", selection, "cpu", memory)
        assert data.streamed == (memory is not None)
        wanted = F.normalize(expected_tokens(content, plan, "train", expected), dim=-1)
        torch.testing.assert_close(data.tokens.batch(torch.arange(300)), wanted)


def test_statistics_alone_and_heads_that_tell_layers_apart(cached):
    cache, _, _ = cached
    assert select(cache, "last", "sd").places() == [("final", "sd")]
    (_, job) = jobs(
        cache, ProbeRequest(heads=("gated",), layers="all", tokens="cls+ap+max", baselines="trained")
    )
    assert job.options["num_layers"] == 4
    (_, job) = jobs(
        cache, ProbeRequest(heads=("attentive",), layers="all", tokens="cls+ap+max", baselines="trained")
    )
    assert job.options["num_heads"] == 12


def test_a_head_over_statistics_is_trained_saved_and_used(cached, tmp_path):
    cache, content, plan = cached
    request = ProbeRequest(heads=("ridge",), layers="all", tokens="cls+ap+sd+max", out=tmp_path / "out")
    row = probe(cache, request)[-1]
    assert row.tokens == ("cls", "ap", "sd", "max")
    head = TrainedHead.load(tmp_path / "out" / row.folder)
    scores = head.score(cache).scores
    assert scores["balanced_accuracy"] == pytest.approx(row.score)
    selection = select(cache, "all", "cls+ap+sd+max")
    tokens = expected_tokens(content, plan, "test", selection.places())
    hits = head.predict(tokens.view(40, 4, 4, WIDTH))  # as a user of arrays has them, [N, L, K, D]
    assert (hits == torch.arange(40).numpy() % 3).mean() == pytest.approx(scores["top1"])


def test_a_statistic_that_some_layer_lacks_is_refused(cached):
    cache, _, _ = cached
    with pytest.raises(RequestError, match=r"no min of layer 1 of the train split; .* --tokens min adds it"):
        select(cache, "all", "cls+min")
    with pytest.raises(RequestError, match="no gem of layer final of the train split"):
        select(cache, "last", "gem")
    assert select(cache, "3,final", "min").num_tokens == 2
    assert {*STATISTICS} == {"sd", "max", "min", "gem"}


def test_statistics_load_beside_the_pooled_tokens(cached):
    split = cached[0]["train"]
    kinds = ["ap", "max", "sd", "cls"]
    wanted = np.concatenate(
        [
            split.view(group=kind).load("all", [kind]) if kind in STATISTICS else split.load("all", [kind])
            for kind in kinds
        ],
        axis=2,
    )
    np.testing.assert_array_equal(split.load("all", "+".join(kinds)), wanted)
    out = np.empty_like(wanted[:3], dtype=np.float32)
    rows = [5, 0, 5]
    assert split.gather(rows, "all", kinds, out) is out
    np.testing.assert_array_equal(out, wanted[rows].astype(np.float32))
    with pytest.raises(UnknownNameError, match="norm2_gem"):
        split.load("all", "cls+gem")
    with pytest.raises(ValueError, match="out must have shape"):
        split.load("all", kinds, out)
