"""Layer names and sets, slugs, roots and the catalogue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.store.catalogue import completed_last, find_request, roots, scan, select, slug
from featcache.store.errors import CacheNotFoundError, RequestError, UnknownNameError
from featcache.store.layers import layer_set, parse_layers, parse_tokens
from featcache.store.requests import record_request
from featcache.store.writing.writer import CacheWriter
from support.caches import cache_folder, make_content, make_plan, write_cache


@pytest.mark.parametrize(
    ("name", "layers"),
    # The table of arXiv 2601.09322 for a backbone of 12 blocks.
    [
        ("last", ["final"]),
        ("mid+last", ["6", "final"]),
        ("quarters", ["3", "6", "9", "final"]),
        ("all", [*map(str, range(1, 12)), "final"]),
        ("every", [*map(str, range(12)), "final"]),
        ("0,3,final", ["0", "3", "final"]),
        ("final, 2", ["final", "2"]),
    ],
)
def test_layer_sets(name, layers):
    assert list(parse_layers(name, 12)) == layers


def test_all_of_a_large_backbone_is_one_layer_per_block():
    assert len(layer_set("all", 24)) == 24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("al", "unknown layer 'al'; did you mean all"),
        ("12", "unknown layer '12'; valid: last, mid+last, quarters, all, every, 0, 1,"),
        ("12", "(blocks 0 to 11, or final)"),
        ("-1", "unknown layer '-1'; valid: last"),
        ("3,3", "layer 3 is named more than once"),
        (",", "no layer is named"),
        (
            "quarters,1",
            "the layer set 'quarters' stands alone, not in a list such as 'quarters,1'; it is 3,6,9,final",
        ),
    ],
)
def test_bad_layers(text, message):
    with pytest.raises(RequestError) as caught:
        parse_layers(text, 12)
    assert message in str(caught.value)


def test_tokens():
    assert parse_tokens("cls+ap") == parse_tokens("cls, ap") == ("cls", "ap")
    with pytest.raises(UnknownNameError, match="unknown token kind 'clss'; did you mean cls"):
        parse_tokens("clss")
    with pytest.raises(RequestError, match="more than once"):
        parse_tokens("ap+ap")


@pytest.mark.parametrize(
    ("name", "valid", "meant"),
    [
        ("vit-l14", ["vit-b-14", "vit-l-14", "vit-l-16"], "did you mean vit-l-14, "),
        ("DINOV2-S", ["dinov2-vit-s-14", "mae-vit-b-16"], "did you mean dinov2-vit-s-14?"),
        ("dinov5", ["dino-vit-s-8", "dinov2-vit-s-14", "mae-vit-b-16"], "did you mean dinov2-vit-s-14?"),
        ("lasso", ["l2", "group-lasso"], "did you mean group-lasso?"),
        ("knm", ["knn", "ridge"], "did you mean knn?"),
        ("nope", ["flowers", "pets"], "valid: flowers, pets"),
        ("bogus", ["s3", "gs"], "valid: s3, gs"),
        ("nope", ["top1", "top5"], "valid: top1, top5"),
        ("99", ["9", "10"], "valid: 9, 10"),
        ("hidden", [], "there are none"),
        ("q", map(str, range(100, 130)), f"valid: {', '.join(map(str, range(100, 120)))}, ..."),
    ],
)
def test_only_what_is_alike_is_suggested_and_else_what_there_is(name, valid, meant):
    assert str(UnknownNameError("name", name, valid)).startswith(f"unknown name {name!r}; {meant}")


@given(st.text(max_size=200))
def test_slugs_are_one_safe_folder_name(text):
    name = slug(text)
    assert 1 <= len(name) <= 64
    assert all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in name)
    assert slug(name) == name


def test_roots(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path}:/shared")
    assert [str(root) for root in roots()] == [str(tmp_path), "/shared"]
    monkeypatch.delenv("FEATCACHE_ROOT")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert roots() == [tmp_path / "featcache"]


@pytest.fixture
def root(tmp_path):
    """Three caches: two complete ones, the older one completed last, and one that was only started."""
    for dataset, completed in (("flowers", 20.0), ("pets", 10.0)):
        plan = make_plan({"train": 3, "test": 3}, name=dataset)
        provenance = {
            "model_names": ["vit-l-14", "open_clip:x"],
            "dataset_names": [dataset],
            "completed_at": completed,
        }
        folder = cache_folder(tmp_path, plan, dataset, "vit-l-14")
        write_cache(folder, plan, make_content(plan), provenance)
        record_request(folder, {"model": "open_clip:x", "dataset": dataset, "precision": "fp32"})
    started = make_plan({"train": 3, "test": 3}, name="cars")
    with CacheWriter(cache_folder(tmp_path, started, "cars", "vit-l-14"), started):
        pass
    return tmp_path


def test_scan(root, tmp_path):
    (tmp_path / "flowers" / "not-a-cache").mkdir()
    assert {(entry.name.split("-")[0], entry.complete) for entry in scan([root])} == {
        ("cars/vit", False),
        ("flowers/vit", True),
        ("pets/vit", True),
    }
    assert completed_last([root]).dataset == "flowers"


def test_select(root):
    pets = select([root], dataset="pets")
    assert pets.dataset == "pets"
    for name in (pets.key, pets.key[:6], pets.name, str(pets.path)):
        assert select([root], name).path == pets.path
    assert select([root], models=["open_clip:x"], dataset="pets").path == pets.path
    with pytest.raises(RequestError, match="2 caches match; name one with --cache:\n  flowers/"):
        select([root], models=["vit-l-14"])
    with pytest.raises(
        CacheNotFoundError, match=r"no cache matches dataset nope under .*; there are:\n  cars/.*incomplete"
    ):
        select([root], dataset="nope")


def test_an_empty_root_says_what_to_do(tmp_path):
    with pytest.raises(CacheNotFoundError, match="make one with `featcache extract"):
        completed_last([tmp_path / "nothing"])


def test_requests_find_their_cache(root):
    request = {"model": "open_clip:x", "dataset": "pets", "precision": "fp32"}
    found = find_request([root], request)
    assert found is not None
    assert found.dataset == "pets"
    assert find_request([root], {**request, "precision": "auto"}) == found
    assert find_request([root], {**request, "precision": "mixed"}) is None
    # A damaged request.json is only a lost shortcut.
    (found.path / "request.json").write_text("{")
    assert find_request([root], request) is None
