"""A cache is plain Zarr: readers that have nothing to do with featcache see every value of it."""

import json
import subprocess
import warnings

import numpy as np
import pytest
import xarray

from support.caches import make_content, make_plan, write_cache
from support.zarrita import UnavailableError, node_command

DIMENSIONS = {
    "norm2": ("sample", "block", "token", "channel"),
    "final": ("sample", "final_layer", "token", "channel"),
    "label": ("sample",),
    "sample_id": ("sample", "byte"),
    "valid": ("sample",),
}


@pytest.fixture(params=["float16", "float32", "bfloat16"])
def written(request, tmp_path):
    """A cache of this type with a row that holds no features: its features.zarr, plan and content."""
    plan = make_plan({"train": 300, "test": 90}, dtype=request.param)
    content = make_content(plan)
    for columns in content.values():
        columns["valid"][7] = False
        for name in ("norm2", "final"):
            columns[name][7] = 0x7FC0 if request.param == "bfloat16" else np.nan
    write_cache(tmp_path / "cache", plan, content)
    return tmp_path / "cache" / "features.zarr", plan, content


def check(read: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> None:
    assert read.keys() == columns.keys()
    for name, values in columns.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)


def test_xarray(written):
    features, plan, content = written
    for split, columns in content.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset = xarray.open_zarr(features, group=split)
        assert {name: array.dims for name, array in dataset.data_vars.items()} == DIMENSIONS
        check({name: array.values for name, array in dataset.data_vars.items()}, columns)
        logical = dataset["norm2"].attrs.get("logical_dtype")
        assert logical == ("bfloat16" if plan.spec.dtype == "bfloat16" else None)


def test_tensorstore(written):
    import tensorstore

    features, plan, content = written
    for split, columns in content.items():
        read = {}
        for name in columns:
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{features}/{split}/{name}/"}}
            array = tensorstore.open(spec, open=True, read=True).result()
            assert array.domain.labels == DIMENSIONS[name]
            assert (
                array.chunk_layout.read_chunk.shape == plan.inventory.splits[split].arrays[name].chunk_shape
            )
            read[name] = array.read().result()
        check(read, columns)


@pytest.fixture(scope="session")
def zarrita():
    try:
        return node_command()
    except UnavailableError as reason:
        pytest.skip(f"zarrita was not tried: {reason}")


def test_zarrita(zarrita, written, tmp_path):
    features, plan, content = written
    for split, columns in content.items():
        out = tmp_path / split
        out.mkdir()
        command = [*zarrita, str(features), split, str(out), *columns]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name, values in columns.items():
            assert (found[name]["shape"], found[name]["type"]) == (list(values.shape), values.dtype.name)
        read = {
            name: np.fromfile(out / name, values.dtype).reshape(values.shape)
            for name, values in columns.items()
        }
        check(read, columns)
        array = plan.inventory.splits[split].arrays["norm2"]
        assert found["norm2"]["attributes"]["layers"] == list(array.layers)
        assert found["norm2"]["attributes"]["tokens"] == list(array.tokens)
