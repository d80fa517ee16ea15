"""The memory map is a fast path: its values are those of any Zarr reader, and those that were written."""

import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.store.arrays import DTYPES, block_rows
from featcache.store.reading.reader import as_float32
from support.caches import make_content, make_plan, write_cache


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_mapped_equals_zarr_equals_written(data):
    samples = {name: data.draw(st.integers(1, 600), name) for name in ("train", "test")}
    shape = {"num_layers": data.draw(st.integers(1, 4)), "width": data.draw(st.integers(1, 9))}
    tokens = data.draw(st.sampled_from([("cls",), ("ap",), ("cls", "ap"), ("ap", "cls")]))
    dtype = data.draw(st.sampled_from(["float16", "float32", "bfloat16"]))
    rows = data.draw(st.sampled_from([128, 256, 512]), "block rows")
    with patch("featcache.store.planning.block_rows", return_value=rows):
        plan = make_plan(
            samples,
            **shape,
            tokens=tokens,
            dtype=dtype,
            batch_size=data.draw(st.integers(1, 200), "batch size"),
        )
    content = make_content(plan, seed=data.draw(st.integers(0, 9)))
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(Path(folder), plan, content)
        group = zarr.open_group(Path(folder) / "features.zarr", mode="r")
        for name, columns in content.items():
            for array, values in columns.items():
                read = group[f"{name}/{array}"]
                assert isinstance(read, zarr.Array)
                np.testing.assert_array_equal(read[:], values)
            _check_reader(cache[name], columns, data)


def _check_reader(split, columns, data):
    together = np.concatenate([columns["norm2"], columns["final"]], axis=1)
    layers = data.draw(st.lists(st.sampled_from(split.layers), min_size=1, unique=True), "layers")
    kinds = data.draw(st.lists(st.sampled_from(split.tokens), min_size=1, unique=True), "tokens")
    picked = together[:, [split.layers.index(layer) for layer in layers]][
        :, :, [split.tokens.index(k) for k in kinds]
    ]
    np.testing.assert_array_equal(split.load(layers, kinds), picked)
    wanted = data.draw(st.lists(st.integers(0, split.num_samples - 1), max_size=20), "rows")
    buffer = np.empty((len(wanted), *picked.shape[1:]), picked.dtype)
    assert split.gather(wanted, layers, kinds, out=buffer) is buffer
    np.testing.assert_array_equal(buffer, picked[np.array(wanted, int)])
    np.testing.assert_array_equal(split.labels(), columns["label"])
    assert split.valid().all()
    assert split.sample_ids() == [f"{split.inventory.name}-{row}" for row in range(split.num_samples)]


@pytest.mark.parametrize("options", [{}, {"consolidated": False}])
def test_other_readers_open_it_without_a_warning(tmp_path, options):
    plan = make_plan()
    content = make_content(plan)
    write_cache(tmp_path, plan, content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xarray.open_zarr(tmp_path / "features.zarr", group="train", **options)
        names = sorted(
            name for name, _ in zarr.open_group(tmp_path / "features.zarr", mode="r")["train"].members()
        )
    for name, values in content["train"].items():
        np.testing.assert_array_equal(dataset[name].values, values)
        assert dataset[name].dtype == values.dtype
    assert dataset["norm2"].dims == ("sample", "block", "token", "channel")
    assert names == sorted(content["train"])


def test_attributes_tell_other_readers_what_the_axes_are(tmp_path):
    plan = make_plan(dtype="bfloat16")
    write_cache(tmp_path, plan, make_content(plan))
    group = zarr.open_group(tmp_path / "features.zarr", mode="r")
    attributes = group["train/norm2"].attrs.asdict()
    assert attributes == {"layers": ["0", "1", "2"], "tokens": ["cls", "ap"], "logical_dtype": "bfloat16"}
    assert group["train/label"].attrs["class_names"] == ["class 0", "class 1", "class 2"]


def test_padding_is_the_fill_value(tmp_path):
    plan = make_plan({"train": 130, "test": 1})
    write_cache(tmp_path, plan, make_content(plan))
    for array in plan.inventory.splits["train"].arrays.values():
        path = tmp_path / "features.zarr" / "train" / array.name / array.chunk_name(1)
        chunk = np.fromfile(path, array.stored_dtype).reshape(128, -1)
        np.testing.assert_array_equal(chunk[2:], np.full_like(chunk[2:], DTYPES[array.dtype].fill))


def test_bfloat16_converts_exactly():
    # 1.0, -2.5, 3.140625 and NaN, written by hand as the upper half of their float32 bits.
    bits = np.array([0x3F80, 0xC020, 0x4049, 0x7FC0], "<u2")
    np.testing.assert_array_equal(as_float32(bits, "bfloat16"), np.array([1.0, -2.5, 3.140625, np.nan], "f4"))


@pytest.mark.parametrize(
    ("samples", "rows"),
    # The smallest power of two from 128 to 4,096 that gives at most 64 blocks.
    [(1, 128), (8192, 128), (8193, 256), (50_000, 1024), (262_144, 4096), (1_281_167, 4096)],
)
def test_block_size_rule(samples, rows):
    assert block_rows(samples) == rows
