"""Caches and splits do what Python and numpy promise of such objects, or say why not."""

import pickle
from collections.abc import Mapping

import numpy as np
import pytest

from featcache.store.errors import RequestError, UnknownNameError, UnknownSplitError
from featcache.store.reading.reader import Cache, open_cache
from support.caches import make_content, make_plan, write_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    plan = make_plan({"train": 70, "test": 30}, num_layers=8, width=4)
    return write_cache(tmp_path_factory.mktemp("cache"), plan, make_content(plan))


def test_a_cache_is_a_mapping_of_its_splits(cache):
    assert isinstance(cache, Mapping)
    assert "train" in cache
    assert "val" not in cache
    assert 3 not in cache
    assert list(cache) == list(cache.keys()) == ["train", "test"]
    assert len(cache) == 2
    assert dict(cache.items()) == {name: cache[name] for name in cache}
    assert [len(split) for split in cache.values()] == [70, 30]
    assert cache.get("val") is None
    assert cache.get("test") is cache["test"]


def test_a_split_that_is_not_there(cache):
    with pytest.raises(KeyError) as caught:
        cache["trian"]
    assert isinstance(caught.value, UnknownSplitError)
    assert isinstance(caught.value, UnknownNameError)
    assert str(caught.value) == "unknown split 'trian'; did you mean train?"
    with pytest.raises(KeyError):
        cache[0]


def test_caches_are_told_apart_by_identity(cache):
    again = open_cache(cache.directory)
    assert again != cache
    assert again.key == cache.key
    assert len({cache, again, cache}) == 2
    assert pickle.loads(pickle.dumps(cache)).key == cache.key


@pytest.mark.parametrize("convert", [np.asarray, np.array, lambda one: np.asarray(one, np.float32)])
def test_neither_is_an_array(cache, convert):
    with pytest.raises(
        TypeError, match=r"a split is no array .* call load\(layers, tokens\), such as load\('last', 'cls'\)"
    ):
        convert(cache["train"])
    with pytest.raises(TypeError, match=r"a cache is no array: take a split \('train', 'test'\)"):
        convert(cache)


def test_a_split_has_a_length_and_no_order_of_its_own(cache):
    split = cache["train"]
    assert len(split) == split.num_samples == 70
    assert split
    with pytest.raises(TypeError, match="not iterable"):
        iter(split)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("last", ["final"]),
        ("mid+last", ["4", "final"]),
        ("quarters", ["2", "4", "6", "final"]),
        ("all", [*map(str, range(1, 8)), "final"]),
        ("every", [*map(str, range(8)), "final"]),
        ("5", ["5"]),
        ("6, 0,final", ["6", "0", "final"]),
    ],
)
def test_layer_sets_and_lists_in_one_text(cache, text, names):
    split = cache["train"]
    assert list(split.resolve_layers(text)) == names
    np.testing.assert_array_equal(split.load(text, "cls+ap"), split.load(names, ["cls", "ap"]))
    np.testing.assert_array_equal(split.load(text, "ap"), split.load(names, ["ap"]))
    rows = [5, 3, 69]
    np.testing.assert_array_equal(
        split.gather(rows, text, "ap,cls"), split.gather(rows, names, ["ap", "cls"])
    )
    for by_text, by_name in zip(
        split.batches(32, text, "cls", seed=0), split.batches(32, names, ["cls"], seed=0), strict=True
    ):
        np.testing.assert_array_equal(by_text[0], by_name[0])
        np.testing.assert_array_equal(by_text[1], by_name[1])


def test_a_text_of_two_digits_is_one_layer(tmp_path):
    """Letter by letter, ``11`` would be layer 1 twice."""
    plan = make_plan({"train": 9, "test": 3}, num_layers=12)
    split = write_cache(tmp_path, plan, make_content(plan))["train"]
    np.testing.assert_array_equal(split.load("11", "cls"), split.load(["11"], ["cls"]))


@pytest.mark.parametrize(
    ("layers", "tokens", "message"),
    [
        ("halves", "cls", "unknown layer 'halves'"),
        ("8", "cls", "unknown layer '8'"),
        ("3,3", "cls", "layer 3 is named more than once"),
        ("", "cls", "no layer is named"),
        ("last", "cls+cls", "token kind cls is named more than once"),
        ("last", "patch0", "unknown token kind 'patch0'"),
        ("last", "", "no token kind is named"),
    ],
)
def test_texts_that_name_nothing(cache, layers, tokens, message):
    with pytest.raises(RequestError, match=message):
        cache["train"].load(layers, tokens)


def test_torch_datasets_take_them_too(cache):
    from featcache.probing.inputs.dataset import CachedSamples, ShuffledBatches

    split = cache["train"]
    samples = CachedSamples(split, "quarters", "cls+ap")
    assert (samples.layers, samples.tokens) == (("2", "4", "6", "final"), ("cls", "ap"))
    assert samples[0][0].shape == (4, 2, 4)
    assert ShuffledBatches(split, 8, "last", "cls").layers == ("final",)
