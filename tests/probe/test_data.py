"""A split as the trainer sees it: the tokens of several arrays side by side, in the order that a selection says."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from featcache.probing.inputs.data import base_transform, load_split, split_bytes
from featcache.probing.inputs.streaming import StreamedTokens
from featcache.probing.protocols.protocol import PAPER, get_protocol
from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.store.errors import CacheError, RequestError, UnknownNameError
from featcache.store.reading.reader import Cache
from support.caches import make_content, make_plan, write_cache

from .caches import WIDTH, expected_tokens, rich_cache, rich_plan, select

SELECTIONS = [
    ("last", "cls", 1),
    ("quarters", "ap+cls", 8),
    ("last", "cls+patches", 1 + 6),
    # Patches of those of the layers that hold them: 1, 3 and final.
    ("all", "cls+ap+patches", 8 + 18),
    ("final,0", "registers", 4),
    ("every", "grid2,cls", 5 + 20),
    ("3,final,1", "patches+ap+registers+grid2", 3 + 6 + 18 + 12),
]


@pytest.fixture
def cache(tmp_path) -> Cache:
    return rich_cache(tmp_path, rich_plan({"train": 30, "test": 4}))[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("skipped", [[], [0, 5, 128, 299]], ids=["whole", "skipped"])
def test_tokens_come_in_the_order_of_their_places(tmp_path, dtype, skipped):
    plan = rich_plan(dtype=dtype)
    cache, content = rich_cache(tmp_path, plan, {"train": skipped})
    held = np.setdiff1d(np.arange(300), skipped)
    for layers, kinds, num_tokens in SELECTIONS:
        selection = select(cache, layers, kinds)
        assert selection.num_tokens == len(selection.places()) == num_tokens
        loaded = load_split(cache, "train", selection, "cpu")
        assert not loaded.streamed
        assert (loaded.tokens.num_samples, loaded.tokens.num_tokens) == (len(held), num_tokens)
        want = F.normalize(expected_tokens(content, plan, "train", selection.places())[held], dim=-1)
        torch.testing.assert_close(loaded.tokens.batch(torch.arange(len(held))), want)
        np.testing.assert_array_equal(loaded.labels, held % 3)
        assert loaded.sample_ids == [f"train-{row}" for row in held]


def test_places_name_layer_and_kind(cache):
    selection = select(cache, "mid+last", "ap+cls+registers+patches")
    pooled = [("2", "ap"), ("2", "cls"), ("final", "ap"), ("final", "cls")]
    registers = [("2", "registers")] * 2 + [("final", "registers")] * 2
    assert selection.places() == pooled + registers + [("final", "patches")] * 6
    assert (selection.kinds, selection.token_names) == (
        ("ap", "cls", "registers", "patches"),
        "ap+cls+registers+patches",
    )
    assert selection == select(cache, "mid+last", "patches,ap,registers,cls"), "one selection, one result"


def test_what_exceeds_the_memory_is_streamed(cache):
    selection = select(cache, "all", "cls+patches")
    size = 30 * (4 + 18) * 16 * 2
    assert split_bytes(cache["train"], selection) == size
    assert not load_split(cache, "train", selection, "cpu", size).streamed
    streamed = load_split(cache, "train", selection, "cpu", size - 1)
    assert streamed.streamed
    assert isinstance(streamed.tokens, StreamedTokens)


@pytest.mark.parametrize(
    ("layers", "tokens", "error", "message"),
    [
        (
            "all",
            "cls+grid4",
            RequestError,
            "holds no grid4 of the train split; .* extract` with --tokens grid4 adds them",
        ),
        (
            "0,2",
            "cls+patches",
            RequestError,
            "the cache holds patches of 1, 3, final, none of which is asked",
        ),
        ("last", "cls+ap+cls", RequestError, r"token kind cls is named more than once in 'cls\+ap\+cls'"),
        ("last", "patches,cls,patches", RequestError, "token kind patches is named more than once"),
        ("last", "cls+patch", UnknownNameError, "unknown token kind 'patch'; did you mean patches"),
        ("last", "pooled", UnknownNameError, "unknown token kind 'pooled'"),
        ("last", " + ", RequestError, "no token kind is named"),
        ("last,3", "cls", RequestError, "the layer set 'last' stands alone, not in a list such as 'last,3'"),
    ],
)
def test_what_there_is_not(cache, layers, tokens, error, message):
    with pytest.raises(error, match=message):
        jobs(cache, ProbeRequest(heads=("attentive",), layers=layers, tokens=tokens))


def test_a_group_that_only_one_split_holds(tmp_path):
    plan = rich_plan({"train": 30, "test": 4})
    del plan.inventory.splits["test"].arrays["norm2_registers"]
    del plan.inventory.splits["test"].arrays["final_registers"]
    cache, _ = rich_cache(tmp_path, plan)
    with pytest.raises(RequestError, match="holds no registers of the test split; the same"):
        select(cache, "last", "registers")


def test_a_split_without_features(tmp_path):
    plan = make_plan({"train": 30, "test": 4})
    content = make_content(plan)
    content["test"]["valid"][:] = False
    cache = write_cache(tmp_path, plan, content)
    selection = select(cache, "last", "cls")
    assert len(load_split(cache, "train", selection, "cpu").labels) == 30
    with pytest.raises(CacheError, match="split 'test' holds no features"):
        load_split(cache, "test", selection, "cpu")


def test_the_quirks_of_the_published_runs_are_a_transform_of_the_tokens(cache) -> None:
    """CLIP's final tokens go through its projection, zero-padded; patches are normalised along the token axis."""
    parity = get_protocol("paper-parity")
    plain, patches = select(cache, "all", "cls+ap"), select(cache, "last", "cls+patches")
    assert base_transform(cache, plain, PAPER).is_plain
    assert base_transform(cache, plain, parity).is_plain, "no projection, no patches"
    assert base_transform(cache, patches, parity).over_tokens
    matrix = np.random.default_rng(0).normal(size=(WIDTH, 5)).astype(np.float32)
    projecting = SimpleNamespace(projection=lambda: matrix)
    transform = base_transform(projecting, plain, parity)
    places = [place for place, (layer, _) in enumerate(plain.places()) if layer == "final"]
    assert transform.projected.tolist() == places
    tokens = torch.randn(3, plain.num_tokens, WIDTH)
    seen = transform.apply_(tokens.clone())
    projected = tokens[:, places] @ torch.from_numpy(matrix)
    torch.testing.assert_close(seen[:, places, :5], F.normalize(projected, dim=2))
    assert not seen[:, places, 5:].any()
    others = [place for place in range(plain.num_tokens) if place not in places]
    torch.testing.assert_close(seen[:, others], F.normalize(tokens[:, others], dim=2))
    wide = SimpleNamespace(projection=lambda: np.zeros((WIDTH, WIDTH + 1), np.float32))
    with pytest.raises(RequestError, match="projects to 17 channels, more than the 16 of a token"):
        base_transform(wide, plain, parity)
