"""int8 features: what readers hand out is what any Zarr reader decodes, and scales are fitted once, whoever starts or dies."""

import os
import signal
import time
import warnings
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as drawn_arrays

from featcache.store.arrays import ArrayInfo
from featcache.store.catalogue.additions import drop_addition
from featcache.store.checking.repair import repair
from featcache.store.checking.verify import verify
from featcache.store.errors import CacheError, RequestError
from featcache.store.journal import Plan
from featcache.store.manifest import Manifest
from featcache.store.quantization import RangeFit, Scales, scale_shape
from featcache.store.reading.reader import open_cache
from featcache.store.transfer.manifests import merge_manifests
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, flip, make_plan, write_blocks
from support.int8 import PROVENANCE, encoded, fit_of, float_content, without_layers, write_int8

SCALE_FILES = [
    f"features.zarr/{part}_{array}/c.0.0.0" for array in ("final", "norm2") for part in ("offset", "scale")
]


def decoded_by_zarr(folder, split, array):
    """The values of an array, decoded with zarr-python and the array's attributes alone."""
    root = zarr.open_group(folder / "features.zarr", mode="r")
    codes = root[f"{split}/{array}"]
    rule = codes.attrs["quantization"]
    values = codes[:].astype("float32") * root[rule["scale"]][:] + root[rule["offset"]][:]
    values[codes[:] == rule["missing"]] = np.nan
    return values


# The rule.


# Training in the same process may have switched subnormal numbers off.
finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(sample=drawn_arrays(np.float32, (5, 2, 2, 3), elements=finite))
def test_a_code_is_within_half_a_step_of_its_value(sample):
    ranges = RangeFit(
        ArrayInfo("norm2", (5, 2, 2, 3), 128, "int8", ("a", "b", "c", "d"), ("0", "1"), ("cls", "ap"))
    )
    for part in (sample[:2], sample[2:]):
        ranges.add(part)
    scales = ranges.scales()
    codes, clipped = scales.encode(sample)
    # What was fitted is never clipped: the range is wider at either end.
    assert not clipped.any()
    # By hand: the largest of five normal values is expected at 1.18 deviations, and 127 * 1.18 / 4.5 is 33.3.
    assert np.abs(codes.astype(int)).max() <= 34
    error = np.abs(scales.decode(codes).astype(np.float64) - sample)
    rounding = np.spacing(np.maximum(np.abs(sample), np.abs(scales.offset)).astype(np.float32)) * 2
    assert (error <= scales.scale.astype(np.float64) * 0.5 + rounding).all()


def test_values_out_of_range_are_clipped_and_counted():
    scales = Scales(np.full((1, 1, 2), 0.5, np.float32), np.full((1, 1, 2), 1.0, np.float32))
    values = np.array([[64.5, -62.5], [64.8, 900.0], [-63.0, 1.25]], np.float32).reshape(3, 1, 1, 2)
    codes, clipped = scales.encode(values)
    # By hand: (x - 1) / 0.5 = 127, -127; 127.6, 1798; -128, 0.5, which goes to the even 0.
    assert codes.ravel().tolist() == [127, -127, 127, 127, -127, 0]
    assert clipped.ravel().tolist() == [False, False, True, True, True, False]


def test_products_are_exact_so_that_fused_and_plain_arithmetic_agree():
    rng = np.random.default_rng(0)
    ranges = RangeFit(ArrayInfo("norm2", (64, 1, 1, 999), 128, "int8", ("a",) * 4, ("0",), ("cls",)))
    ranges.add(
        rng.standard_normal((64, 1, 1, 999)).astype(np.float32) * 10.0 ** rng.uniform(-6, 4, 999).astype("f4")
    )
    scales = ranges.scales()
    for code in (-127, 3, 101, 127):
        assert (
            (np.float32(code) * scales.scale).astype(np.float64) == code * scales.scale.astype(np.float64)
        ).all()


def test_positions_of_one_kind_share_their_scales():
    patches = ArrayInfo("norm2_patches", (9, 2, 4, 3), 128, "int8", ("a", "b", "c", "d"), ("0",), ("p",) * 4)
    assert scale_shape(patches) == (2, 1, 3)
    assert scale_shape(replace(patches, name="norm2_registers")) == (2, 4, 3)
    values = np.random.default_rng(0).standard_normal((9, 2, 4, 3)).astype("f4")
    ranges = RangeFit(patches)
    ranges.add(values)
    middle = (values.min((0, 2)) + values.max((0, 2))) / 2
    np.testing.assert_allclose(ranges.scales().offset[:, 0], middle, rtol=1e-5, atol=1e-6)


def test_layers_that_were_not_fitted_have_no_scale():
    array = ArrayInfo("norm2", (9, 3, 1, 2), 128, "int8", ("a", "b", "c", "d"), ("0", "2"), ("cls",))
    ranges = RangeFit(array)
    ranges.add(np.ones((9, 2, 1, 2), np.float32), layers=[0, 2])
    assert np.isnan(ranges.scales().scale[:, 0, 0]).tolist() == [False, True, False]


# Readers.


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_every_way_of_reading_gives_what_zarr_gives(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cache")
    # A width of 1,024 fills pages, so that files can be mapped; others are read.
    width = data.draw(st.sampled_from([5, 16, 1024]), "width")
    missing = data.draw(st.sampled_from([(), (0,), (3, 128, 129)]), "missing")
    cache, _, _ = write_int8(folder, {"train": 140, "test": 3}, width=width, num_layers=2, missing=missing)
    split = cache["train"]
    every = np.concatenate([decoded_by_zarr(folder, "train", name) for name in ("norm2", "final")], axis=1)
    assert split.stored_dtype == "int8"
    assert split.dtype == "float16"
    layers = data.draw(st.lists(st.sampled_from(split.layers), min_size=1, unique=True), "layers")
    kinds = data.draw(st.sampled_from([["cls"], ["ap"], ["cls", "ap"], ["ap", "cls"]]), "kinds")
    picked = every[:, [split.layers.index(x) for x in layers]][:, :, [split.tokens.index(k) for k in kinds]]
    rows = np.array(data.draw(st.lists(st.integers(0, 139), max_size=20), "rows"), int)
    for dtype in (None, "float16", "float32"):
        wanted = picked.astype(dtype or "float16")
        method = data.draw(st.sampled_from(["auto", "read"]), "method")
        np.testing.assert_array_equal(split.load(layers, kinds, dtype=dtype), wanted)
        np.testing.assert_array_equal(
            split.gather(rows, layers, kinds, dtype=dtype, method=method), wanted[rows]
        )
        # A part of a larger buffer, as probes read several taps side by side.
        wide = np.zeros((140, len(layers) + 2, len(kinds), width), wanted.dtype)
        split.load(layers, kinds, out=wide[:, 1:-1])
        split.gather(np.arange(140), layers, kinds, out=wide[:, 1:-1], method=method)
        np.testing.assert_array_equal(wide[:, 1:-1], wanted)
        seen = np.full_like(wanted, 7)
        for at, batch in split.batches(32, layers, kinds, 0, dtype=dtype, method=method):
            seen[at] = batch
        np.testing.assert_array_equal(seen, wanted)
    np.testing.assert_array_equal(
        split.layer_map(layers[0]), every[:, split.layers.index(layers[0])].astype("f2")
    )
    assert np.isnan(split.load(layers, kinds)[list(missing)]).all()
    codes = split.load(layers, kinds, dtype="int8")
    assert codes.dtype == np.int8
    assert (codes[list(missing)] == -128).all()


def test_small_memory_hands_out_the_same_rows(tmp_path):
    cache, _, _ = write_int8(tmp_path, {"train": 300, "test": 3}, width=1024)
    split = cache["train"]
    every = split.load(split.layers, split.tokens, dtype="float32")
    for method in ("auto", "read"):
        out = np.empty((16, *every.shape[1:]), np.float32)
        memory = 16 * every[0].nbytes + 5 * 16 * every[0].size
        batches = list(
            split.batches(16, split.layers, split.tokens, 0, memory, out=None, dtype="float32", method=method)
        )
        assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(300))
        for rows, batch in split.batches(16, split.layers, split.tokens, 0, memory, out=out, method=method):
            np.testing.assert_array_equal(batch, every[rows])


def test_xarray_decodes_it_by_the_attributes(tmp_path):
    _, _, _ = write_int8(tmp_path, missing=(1,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = xarray.open_zarr(tmp_path / "features.zarr")
        train = xarray.open_zarr(tmp_path / "features.zarr", group="train")
    for name in ("norm2", "final"):
        rule = train[name].attrs["quantization"]
        scale, offset = (root[rule[part].lstrip("/")] for part in ("scale", "offset"))
        values = train[name].where(train[name] != rule["missing"]) * scale + offset
        assert values.dims == train[name].dims
        np.testing.assert_allclose(
            values.values, decoded_by_zarr(tmp_path, "train", name), rtol=1e-6, atol=1e-7
        )
    tree = xarray.open_datatree(tmp_path / "features.zarr", engine="zarr")
    assert tree["train/norm2"].dtype == np.int8


@pytest.mark.parametrize(
    ("stored", "dtype", "message"),
    [
        (
            "int8",
            "bfloat16",
            "features stored as int8 are not handed out as bfloat16: ask for float16 or float32 or int8",
        ),
        (
            "bfloat16",
            "float16",
            "features stored as bfloat16 are not handed out as float16: ask for float32 or bfloat16",
        ),
        ("float32", "int8", "features stored as float32 are not handed out as int8: ask for float32"),
    ],
)
def test_types_that_cannot_be_handed_out(tmp_path, stored, dtype, message):
    if stored == "int8":
        cache, _, _ = write_int8(tmp_path)
    else:
        from support.caches import make_content, write_cache

        plan = make_plan(dtype=stored)
        cache = write_cache(tmp_path, plan, make_content(plan))
    for read in (
        lambda: cache["train"].load("last", "cls", dtype=dtype),
        lambda: cache["train"].gather([0], "last", "cls", dtype=dtype),
        lambda: cache["train"].batches(4, "last", "cls", 0, dtype=dtype),
    ):
        with pytest.raises(RequestError) as caught:
            read()
        assert str(caught.value) == message


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_other_caches_hand_out_float32_too(tmp_path, stored):
    from featcache.store.reading.reader import as_float32
    from support.caches import make_content, write_cache

    plan = make_plan(dtype=stored, width=1024)
    split = write_cache(tmp_path, plan, make_content(plan))["train"]
    wanted = as_float32(split.load("every", "ap+cls"), stored)
    np.testing.assert_array_equal(split.load("every", "ap+cls", dtype="float32"), wanted)
    for method in ("auto", "read"):
        got = split.gather([5, 2, 290], "every", "ap+cls", dtype="float32", method=method)
        np.testing.assert_array_equal(got, wanted[[5, 2, 290]])


def test_values_beyond_float16_come_as_float32(tmp_path):
    plan = make_plan(dtype="int8")
    content = float_content(plan)
    for columns in content.values():
        columns["norm2"] *= 1e5
    with CacheWriter(tmp_path, plan, fit=fit_of(content)) as writer:
        write_blocks(writer, encoded(plan, content, dict(writer.scales)))
        writer.finish(PROVENANCE, "# card\n")
    split = open_cache(tmp_path)["train"]
    assert split.dtype == "float32"
    assert split.load("every", "cls").dtype == np.float32
    with pytest.raises(RequestError, match="values may be too large for float16; ask for float32"):
        split.load("every", "cls", dtype="float16")


# Writing.


def test_version_and_files(tmp_path):
    cache, _, _ = write_int8(tmp_path)
    assert cache.manifest.to_dict()["spec"]["format_version"] == 3
    assert cache.spec.to_dict()["format_version"] == 2
    assert {f"features.zarr/{p}" for p in cache.manifest.metadata} >= set(SCALE_FILES)
    assert verify(tmp_path).intact


@pytest.mark.parametrize("path", SCALE_FILES[:2])
def test_damaged_scales_are_found_and_fitted_again_or_refused(tmp_path, path):
    cache, content, _ = write_int8(tmp_path)
    before = all_files(tmp_path)
    flip(tmp_path / path)
    found = verify(tmp_path)
    assert [damage.location.path for damage in found.damages] == [path]
    assert not repair(found).whole
    plan = Plan.read(tmp_path)
    assert plan.scales == {p: r for p, r in cache.manifest.metadata.items() if p.endswith("c.0.0.0")}
    other = float_content(plan, seed=5)
    with pytest.raises(
        CacheError, match="are damaged, and fitting them gives other values; remove the cache"
    ):
        CacheWriter(tmp_path, plan, fit=fit_of(other))
    with CacheWriter(tmp_path, plan, fit=fit_of(content)) as writer:
        assert not writer.pending()
        writer.finish(PROVENANCE, "# card\n")
    assert all_files(tmp_path) == before


def test_an_addition_takes_the_scales_of_the_cache(tmp_path):
    whole, content, scales = write_int8(tmp_path / "whole")
    plan = make_plan(dtype="int8")
    parts = [without_layers(plan, layers) for layers in (["1"], ["0", "1", "2"])]
    fitted = []

    def fit(arrays):
        fitted.append([array.name for array in arrays])
        return fit_of(content)(arrays)

    for part in parts:
        with CacheWriter(tmp_path / "grown", part, fit=fit) as writer:
            codes = encoded(plan, content, scales)
            held = {
                a.name: a.layers for a in writer.plan.inventory.splits["train"].arrays.values() if a.layers
            }
            chosen = {
                split: {
                    name: v[:, [int(x) for x in held[name]]] if name == "norm2" else v
                    for name, v in columns.items()
                    if name in writer.plan.inventory.splits[split].arrays
                }
                for split, columns in codes.items()
            }
            write_blocks(writer, chosen)
            writer.finish(PROVENANCE, "# card\n")
    # Once, for layers that were not held at all too.
    assert fitted == [["final", "norm2"]]
    grown = open_cache(tmp_path / "grown")
    assert grown.manifest.to_dict() == whole.manifest.to_dict()


def test_a_dropped_addition_leaves_the_scales_of_the_cache(tmp_path):
    _, content, _ = write_int8(tmp_path)
    before = all_files(tmp_path)
    cache = open_cache(tmp_path)
    split = cache.inventory.splits["train"]
    sd = replace(
        split.arrays["final"],
        name="final_sd",
        tokens=("sd",),
        shape=(300, 1, 1, 4),
        dimension_names=("sample", "final_layer", "sd_token", "channel"),
    )
    more = replace(cache.inventory, splits={"train": replace(split, arrays={**split.arrays, "final_sd": sd})})
    values = {"train": {"final_sd": content["train"]["final"][:, :, :1]}}
    with CacheWriter(tmp_path, Plan(cache.spec, more, 32), fit=fit_of(values)) as writer:
        assert list(writer.scales) == ["final_sd"]
    assert (tmp_path / "features.zarr/scale_final_sd/c.0.0.0").exists()
    assert verify(tmp_path).intact
    drop_addition(tmp_path)
    assert all_files(tmp_path) == before


def _begin(folder, log, delay):
    plan = make_plan(dtype="int8")
    content = float_content(plan)

    def fit(arrays):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(delay)
        return fit_of(content)(arrays)

    with CacheWriter(folder, plan, fit=fit) as writer:
        write_blocks(writer, encoded(plan, content, dict(writer.scales)))
        while writer.wait():
            write_blocks(writer, encoded(plan, content, dict(writer.scales)))
        writer.finish(PROVENANCE, "# card\n")


def test_two_processes_fit_once_and_a_killed_one_is_replaced(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    context = get_context("spawn")
    first = context.Process(target=_begin, args=(folder, log, 30.0))
    first.start()
    while not log.exists():
        time.sleep(0.02)
    others = [context.Process(target=_begin, args=(folder, log, 0.3)) for _ in range(2)]
    for other in others:
        other.start()
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, *others):
        process.join(60)
    assert [other.exitcode for other in others] in ([0, 0], [0, 1], [1, 0])  # one may find the cache complete
    assert len(log.read_text().split()) == 2
    assert verify(folder).intact
    assert open_cache(folder)["train"].valid().all()


def test_copies_with_other_scales_are_not_united(tmp_path):
    first, _, _ = write_int8(tmp_path / "a", seed=0)
    ours = first.manifest
    wanted = {"norm2": ("0",), "final": ("final",)}
    part = ours.part(ours.inventory.select(["train", "test"], wanted))
    mine = replace(part, whole=None)
    other = write_int8(tmp_path / "b", seed=1)[0].manifest
    theirs = replace(other.part(other.inventory.select(["train"], {"norm2": ("1",)})), whole=None)
    theirs = replace(
        theirs,
        blocks=[
            replace(record, files={p: r for p, r in record.files.items() if "norm2" in p})
            for record in theirs.blocks
        ],
    )
    with pytest.raises(CacheError, match=r"first in offset_norm2/c\.0\.0\.0: two runs fitted them"):
        merge_manifests(mine, theirs, "the copies")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["inventory"]["splits"]["test"]["arrays"]["norm2"].update(tokens=["ap", "cls"]),
            "differs",
        ),
        (lambda d: d["spec"].update(converted_from="int8"), "field 'converted_from' must be one of"),
        (lambda d: d["spec"].update(dtype="int4"), "must be one of float16, bfloat16, float32, int8"),
    ],
)
def test_forged_manifests(tmp_path, change, message):
    cache, _, _ = write_int8(tmp_path)
    document = cache.manifest.to_dict()
    change(document)
    with pytest.raises(CacheError, match=message):
        Manifest.from_dict(document, "manifest.json")


def test_a_plan_names_no_other_files(tmp_path):
    cache, _, _ = write_int8(tmp_path)
    record = cache.manifest.metadata["scale_norm2/c.0.0.0"]
    (tmp_path / "journal").mkdir()
    Plan(cache.spec, cache.inventory, 32, {"../x/c.0.0.0": record}).write(tmp_path)
    with pytest.raises(CacheError, match=r"field 'scales' does not fit the inventory at '\.\./x/c\.0\.0\.0'"):
        Plan.read(tmp_path)
