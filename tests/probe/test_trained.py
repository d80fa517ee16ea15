"""A trained head scores features without its cache, and tells its own from others'."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.saved_head import CONFIG_FILE
from featcache.probing.run import probe
from featcache.store.errors import CacheError, RequestError, UnknownNameError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.reading.reader import Cache

from .caches import WIDTH, rich_cache, rich_plan


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    return rich_cache(tmp_path_factory.mktemp("cache") / "made", rich_plan())[0]


@pytest.fixture(scope="module")
def folders(cache, tmp_path_factory) -> dict[str, Path]:
    """Heads on pooled tokens under three input transforms, and on tokens of several groups."""
    out = tmp_path_factory.mktemp("results")
    found = {}
    for name, head, layers, tokens, transform in (
        ("pooled", "linear", "2,final", "cls+ap", "l2"),
        ("standard", "ridge", "2,final", "cls+ap", "l2+standard"),
        ("patches", "attentive", "2,3,final", "cls+patches", "l2"),
    ):
        request = ProbeRequest(
            heads=(head,),
            layers=layers,
            tokens=tokens,
            protocol="quick",
            baselines="none",
            input=transform,
            out=out,
        )
        found[name] = out / probe(cache, request)[-1].folder
    return found


@pytest.mark.parametrize("name", ["pooled", "standard"])
def test_an_array_and_the_cache_give_the_same(cache, folders, name):
    head = featcache.load_head(folders[name])
    assert (head.layers, head.tokens) == (("2", "final"), ("cls", "ap"))
    features = cache["test"].load(head.layers, head.tokens)
    of_cache = head.predict_proba(cache)
    np.testing.assert_allclose(of_cache.sum(1), 1, rtol=1e-5)
    for given in (features, features.astype(np.float64), features.reshape(len(features), 4, WIDTH)):
        np.testing.assert_allclose(head.predict_proba(given, layers=["2", "final"]), of_cache, atol=1e-5)
    # One row alone: the input transform's statistics are those of training, not of what is asked about.
    np.testing.assert_allclose(head.predict_proba(features[3:4]), of_cache[3:4], atol=1e-5)
    hits = head.predict(features) == cache["test"].labels()
    assert head.score(cache).scores["top1"] == pytest.approx(hits.mean())
    assert len(head.predict(cache, split="train")) == 300


def test_which_layers_held_patches_is_known(cache, folders):
    head = featcache.load_head(folders["patches"])
    places = head.places
    assert places[:3] == [("2", "cls"), ("3", "cls"), ("final", "cls")]
    assert {layer for layer, kind in places if kind == "patches"} == {"3", "final"}, "block 2 holds none"
    with pytest.raises(RequestError, match=rf"takes features \[N, 15, {WIDTH}\] in the order of its places"):
        head.predict(cache["test"].load(["2", "3", "final"], ["cls", "ap"]))
    assert len(head.predict(cache)) == 40


def test_other_features_are_refused(tmp_path, cache, folders):
    head = featcache.load_head(folders["pooled"])
    features = cache["test"].load(["2", "final"], ["cls", "ap"])
    with pytest.raises(
        RequestError, match=rf"trained on layers 2, final \(cache {cache.key}\); the features are of 1, final"
    ):
        head.predict(features, layers=["1", "final"])
    with pytest.raises(RequestError, match=r"trained on tokens cls, ap .* the features are of ap, cls"):
        head.predict(features, tokens=["ap", "cls"])
    with pytest.raises(
        RequestError,
        match=rf"takes features \[N, 2, 2, {WIDTH}\]: layers 2, final, tap norm2, tokens cls\+ap .* not \[40, 2, 1, {WIDTH}\]",
    ):
        head.predict(features[:, :, :1])
    bad = features.copy()
    bad[7, 0, 0, 0] = np.nan
    with pytest.raises(RequestError, match="not finite, the first is row 7"):
        head.predict(bad)
    with pytest.raises(UnknownNameError, match="unknown split 'val'"):
        head.predict(cache, split="val")


def test_quantities_have_no_classes(cache, tmp_path):
    request = ProbeRequest(
        heads=("ridge",),
        layers="final",
        tokens="ap",
        protocol="quick",
        target_kind="regression",
        out=tmp_path,
    )
    row = probe(cache, request)[-1]
    head = featcache.load_head(tmp_path / row.folder)
    values = head.predict(cache)
    assert (values.shape, values.dtype) == ((40, 1), np.float32)
    error = values[:, 0] - cache["test"].labels()
    assert head.score(cache).scores["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert row.scores["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    with pytest.raises(RequestError, match="predicts quantities, not classes; use predict"):
        head.predict_proba(cache)


def changed(folder: Path, plan: Plan, **backbone) -> Cache:
    spec = replace(plan.spec, backbone=replace(plan.spec.backbone, **backbone))
    return rich_cache(folder, replace(plan, spec=spec))[0]


def test_caches_of_another_backbone_are_refused_and_other_images_are_not(tmp_path, cache, folders):
    head, plan = featcache.load_head(folders["pooled"]), rich_plan()
    other = changed(tmp_path / "weights", plan, weights_digest="f" * 64)
    message = rf"trained on tokens of timm:tiny, weights 000000000000 \(cache {cache.key}\); the cache {other.key} holds tokens of timm:tiny, weights ffffffffffff"
    with pytest.raises(RequestError, match=message):
        head.predict(other)
    resized = changed(tmp_path / "size", plan, input_size=64)
    with pytest.raises(RequestError, match="holds tokens of another input size or preprocessing"):
        head.score(resized)

    images = replace(
        plan,
        spec=replace(plan.spec, dataset={"kind": "others"}),
        inventory=Inventory(plan.inventory.splits, ("x", "y", "z")),
    )
    others = rich_cache(tmp_path / "images", images)[0]
    assert others.key != cache.key
    assert len(head.predict(others)) == 40
    with pytest.raises(
        RequestError,
        match=r"the head tells 3 classes \(class 0, class 1, class 2\), the cache .* has 3 classes \(x, y, z\)",
    ):
        head.score(others)


def test_a_config_whose_parts_do_not_fit(tmp_path, folders):
    for name in (CONFIG_FILE, "head.safetensors"):
        (tmp_path / name).write_bytes((folders["pooled"] / name).read_bytes())
    document = read_sealed(tmp_path / CONFIG_FILE)
    write_sealed(tmp_path / CONFIG_FILE, {**document, "parts": [["pooled", ["2", "final"], ["cls", "ap"]]]})
    with pytest.raises(CacheError, match=r"is of an earlier version of featcache.*train it again"):
        featcache.load_head(tmp_path)
    for parts in ([], [["norm2", ["2"], ["cls"]]], [["norm2", ["2", "final"], [1, 2]]], [["norm2"]], [3]):
        write_sealed(tmp_path / CONFIG_FILE, {**document, "parts": parts})
        with pytest.raises(CacheError, match="field 'parts' does not make the 4 tokens of the head"):
            featcache.load_head(tmp_path)
