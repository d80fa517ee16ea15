"""Targets of every kind: how they are stored, what they may not be, and that caches without the field are single-label."""

import json
from dataclasses import replace

import numpy as np
import pytest
import zarr

from featcache.store.checking.verify import verify
from featcache.store.errors import CacheError, NoLabelsError
from featcache.store.inventory import Inventory
from featcache.store.reading.reader import open_cache
from featcache.store.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TARGET_KINDS, UNLABELED, Targets
from support.caches import make_content, make_plan, write_cache

LABELED = [kind for kind in TARGET_KINDS if kind != UNLABELED]
BAD = {
    SINGLE_LABEL: (3, "row 7 has label 3, there are 3 class names"),
    MULTI_LABEL: (2, "row 7 has 2 for 'class 1', must be 0 or 1"),
    REGRESSION: (np.inf, "row 7 has inf for 'class 1', must be a finite number"),
}


@pytest.mark.parametrize("kind", LABELED)
def test_targets_survive_and_any_zarr_reader_sees_them(tmp_path, kind):
    plan = make_plan({"train": 130, "test": 9}, target_kind=kind)
    content = make_content(plan)
    cache = write_cache(tmp_path, plan, content)
    assert cache.inventory == plan.inventory
    assert cache["test"].targets == cache.inventory.targets == plan.inventory.targets
    labels = cache["train"].labels()
    np.testing.assert_array_equal(labels, content["train"]["label"])
    array = zarr.open_group(tmp_path / "features.zarr", mode="r")["train/label"]
    np.testing.assert_array_equal(array[:], labels)
    said = {} if kind == SINGLE_LABEL else {"kind": kind, "units": ["mm"] * 3 if kind == REGRESSION else []}
    assert array.attrs.get("targets", {}) == said
    assert json.loads((tmp_path / "manifest.json").read_text())["inventory"].get("targets", {}) == said


@pytest.mark.parametrize("kind", LABELED)
def test_labels_that_cannot_be_are_refused_by_name(tmp_path, kind):
    plan = make_plan({"train": 130, "test": 9}, target_kind=kind)
    content = make_content(plan)
    value, message = BAD[kind]
    content["train"]["label"][(7,) if kind == SINGLE_LABEL else (7, 1)] = value
    write_cache(tmp_path, plan, content)
    with pytest.raises(CacheError, match=message):
        open_cache(tmp_path)["train"].labels()
    assert [damage.reason for damage in verify(tmp_path).damages] == [message]
    # A row without features has no label either.
    valid = np.arange(130) != 7
    assert plan.inventory.targets.mismatch(content["train"]["label"], valid) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {"kind": "ranking", "units": []}}, "field 'targets': kind must be one of single-label"),
        ({"targets": {"kind": MULTI_LABEL, "units": ["mm"]}}, "there are 1 units for 3 names, multi-label"),
        ({"targets": {"kind": REGRESSION, "units": ["\n"] * 3}}, "must be a list of printable strings"),
        ({"targets": {"kind": REGRESSION, "units": []}}, "array 'label' must be there, float32 with 2"),
        ({"class_names": ["a"]}, "array 'label' has 3 columns, there are 1 names"),
    ],
)
def test_forged_targets(change, message):
    document = make_plan(target_kind=MULTI_LABEL).inventory.to_dict() | change
    with pytest.raises(CacheError, match=message):
        Inventory.from_dict(document, "manifest")


def test_a_cache_without_labels(tmp_path):
    plan = make_plan({"train": 130, "test": 9}, target_kind=UNLABELED)
    cache = write_cache(tmp_path, plan, make_content(plan))
    assert not (tmp_path / "features.zarr/train/label").exists()
    assert verify(tmp_path).damages == []
    assert (cache.inventory.targets.labeled, cache.inventory.targets.counts(np.zeros(9)).tolist()) == (
        False,
        [],
    )
    with pytest.raises(NoLabelsError, match=f"{tmp_path} has no labels; attach some with `featcache label"):
        cache["train"].labels()
    # Readers of version 2 must refuse such a cache; the key is that of any other.
    document = json.loads((tmp_path / "manifest.json").read_text())
    assert document["spec"]["format_version"] == 3
    assert document["key"] == plan.spec.key
    assert document["inventory"]["targets"] == {"kind": "none", "units": []}
    document = plan.inventory.to_dict()
    labeled = make_plan({"train": 130, "test": 9}).inventory.to_dict()
    with pytest.raises(
        CacheError, match="an array 'label', but field 'targets' says that there are no labels"
    ):
        Inventory.from_dict(labeled | {"class_names": [], "targets": document["targets"]}, "manifest")
    with pytest.raises(CacheError, match="there are 1 names, none"):
        Inventory.from_dict(document | {"class_names": ["a"]}, "manifest")


def test_counts():
    labels = np.array([0, 2, 2])
    assert Targets(SINGLE_LABEL, ("a", "b", "c")).counts(labels).tolist() == [1, 0, 2]
    both = Targets(MULTI_LABEL, ("a", "b"))
    assert both.counts(np.array([[1, 1], [0, 1]], np.uint8), np.array([True, False])).tolist() == [1, 1]
    with pytest.raises(ValueError, match="2 units for 2 names, multi-label"):
        replace(both, units=("m", "m"))
