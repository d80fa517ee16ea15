"""Spec, key, manifest and Zarr metadata: what is damaged, forged or foreign is refused with the field's name."""

import json
from dataclasses import replace

import pytest

from featcache.store.errors import CacheError, CacheNotFoundError
from featcache.store.files import canonical_json, read_sealed, sha256_hex, write_sealed
from featcache.store.inventory import Inventory
from featcache.store.manifest import Manifest
from featcache.store.reading.reader import open_cache
from featcache.store.spec import CacheSpec
from support.caches import make_content, make_plan, make_spec, write_cache


def test_key_is_pinned():
    # Computed by hand: the first 12 hex digits of `sha256sum` over the canonical JSON. If this test fails,
    # every cache that people have is orphaned: raise the format version instead.
    text = (
        '{"backbone":{"architecture":"timm:tiny","input_size":32,"num_layers":3,"preprocessing":'
        '{"interpolation":"bicubic"},"weights_digest":"' + "0" * 64 + '","width":4},'
        '"dataset":{"kind":"made"},"dtype":"float16","format_version":2,"precision":"fp32"}'
    )
    spec = make_spec()
    assert canonical_json(spec.to_dict()) == text.encode()
    assert spec.key == sha256_hex(text.encode())[:12] == "fdc363cf32d0"


def test_everything_that_fixes_values_changes_the_key():
    spec = make_spec()
    changed = [
        replace(spec, dtype="float32"),
        replace(spec, precision="mixed"),
        replace(spec, dataset={"kind": "other"}),
        *(
            replace(spec, backbone=replace(spec.backbone, **{name: value}))
            for name, value in {
                "architecture": "timm:other",
                "weights_digest": "1" * 64,
                "input_size": 64,
                "preprocessing": {"interpolation": "bilinear"},
            }.items()
        ),
    ]
    assert len({spec.key, *(other.key for other in changed)}) == 1 + len(changed)


def test_documents_survive_a_round_trip(tmp_path):
    plan = make_plan()
    cache = write_cache(tmp_path, plan, make_content(plan))
    assert cache.spec == plan.spec
    assert cache.inventory == plan.inventory
    assert Inventory.from_dict(json.loads(json.dumps(plan.inventory.to_dict())), "x") == plan.inventory
    assert CacheSpec.from_dict(plan.spec.to_dict(), "x") == plan.spec


def test_every_bit_of_the_manifest_counts(tmp_path):
    plan = make_plan({"train": 1, "test": 1}, num_layers=1)
    write_cache(tmp_path, plan, make_content(plan))
    path = tmp_path / "manifest.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        if chr(whole[position]).isspace():
            continue
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CacheError):
            Manifest.read(tmp_path)


FORGED = {
    "rows beyond the array": (
        ("inventory", "splits", "train", "num_samples"),
        5000,
        "has 300 rows, the split has 5000",
    ),
    "petabytes": (
        ("inventory", "splits", "train", "arrays", "norm2", "shape"),
        [2**40, 3, 2, 2**40],
        "more than 2**48 elements",
    ),
    "negative": (
        ("inventory", "splits", "train", "arrays", "norm2", "shape"),
        [-1, 3, 2, 4],
        "list of positive integers",
    ),
    "true as a count": (
        ("inventory", "splits", "train", "num_samples"),
        True,
        "'num_samples' must be int, got bool",
    ),
    "odd block size": (("inventory", "splits", "train", "block_rows"), 100, "must be a power of two"),
    "unknown type": (
        ("inventory", "splits", "train", "arrays", "norm2", "dtype"),
        "object",
        "'dtype' must be one of",
    ),
    "layers that do not fit": (
        ("inventory", "splits", "train", "arrays", "norm2", "layers"),
        ["0"],
        "field 'files' does not fit the inventory",
    ),
    "no spec": (("spec",), None, "'spec' must be dict, got NoneType"),
    "another format": (
        ("spec", "format_version"),
        4,
        "format version 4; this featcache reads versions 2 and 3: upgrade",
    ),
    "another key": (("key",), "000000000000", "'key' is '000000000000', the spec's digest is"),
    "no blocks": (("blocks",), [], "'blocks' lacks block 0 of 'train'"),
    "block of text": (("blocks",), ["x"], "'blocks' must hold objects"),
    "unknown block": (("blocks", 0, "block"), 99, "no such block in the inventory"),
    "wrong rows": (("blocks", 0, "rows"), [0, 1], "'rows' is [0, 1], the inventory says [0, 128]"),
    "path out of the cache": (
        ("blocks", 0, "files", "../../passwd"),
        {"bytes": 1, "sha256": ""},
        "does not fit the inventory at '../../passwd'",
    ),
    "size that disagrees": (
        ("blocks", 0, "files", "train/label/c.0", "bytes"),
        7,
        "recorded with 7 bytes, must be 1024",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_manifest_is_refused_by_field(tmp_path, case):
    spot, value, message = FORGED[case]
    plan = make_plan()
    write_cache(tmp_path, plan, make_content(plan))
    document = read_sealed(tmp_path / "manifest.json")
    inner = document
    for step in spot[:-1]:
        inner = inner[step]
    inner[spot[-1]] = value
    write_sealed(tmp_path / "manifest.json", document)
    with pytest.raises(CacheError) as caught:
        open_cache(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / "manifest.json") in str(caught.value)


@pytest.mark.parametrize("name", ["../train", "train/x", "", "a" * 65, "tr ain", ".."])
def test_a_split_name_that_could_leave_the_cache_is_refused(tmp_path, name):
    document = make_plan().inventory.to_dict()
    document["splits"][name] = document["splits"].pop("train")
    with pytest.raises(CacheError, match="is not a valid name"):
        Inventory.from_dict(document, "manifest.json")


ZARR_CHANGES = {
    "shape": [300, 3, 2, 5],
    "data_type": "float32",
    "codecs": [{"name": "bytes", "configuration": {"endian": "big"}}],
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0.0,
    "zarr_format": 2,
}


@pytest.mark.parametrize("name", ZARR_CHANGES)
def test_zarr_metadata_is_held_to_the_manifest(tmp_path, name):
    plan = make_plan()
    cache = write_cache(tmp_path, plan, make_content(plan))
    path = tmp_path / "features.zarr" / "train" / "norm2" / "zarr.json"
    document = json.loads(path.read_text())
    document[name] = ZARR_CHANGES[name]
    path.write_text(json.dumps(document))
    with pytest.raises(CacheError, match=f"field '{name}' is"):
        cache["train"].load(["0"], ["cls"])


def test_a_chunk_of_the_wrong_size_or_missing_is_named(tmp_path):
    plan = make_plan()
    split = write_cache(tmp_path, plan, make_content(plan))["train"]
    chunk = tmp_path / "features.zarr" / "train" / "norm2" / "c.2.1.0.0"
    chunk.write_bytes(chunk.read_bytes() + b"x")
    with pytest.raises(CacheError, match=r"c\.2\.1\.0\.0: 2049 bytes, must be 2048"):
        split.load(["1"], ["cls"])
    split.load(["0"], ["cls"])  # other layers can still be read
    chunk.unlink()
    with pytest.raises(CacheError, match=r"c\.2\.1\.0\.0: missing"):
        split.gather([299], ["1"], ["cls"])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"a": 1}', b"[" * 100_000])
def test_metadata_that_is_not_ours(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(CacheError, match=r"manifest\.json"):
        open_cache(tmp_path)


def test_no_cache(tmp_path):
    with pytest.raises(CacheNotFoundError, match="no cache here"):
        open_cache(tmp_path / "nowhere")
