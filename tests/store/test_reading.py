"""Every way of reading gives the values that zarr-python gives, from any process, within its budget of memory."""

import multiprocessing
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.reading.maps import LayerMaps
from featcache.store.reading.reader import open_cache
from featcache.store.reading.shuffle import epoch_order
from featcache.store.reading.split import SplitReader
from support.caches import make_content, make_plan, write_cache

METHODS = ["map", "read"]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_method_equals_zarr(data):
    rows = data.draw(st.sampled_from([128, 256]), "block rows")
    with patch("featcache.store.planning.block_rows", return_value=rows):
        plan = make_plan(
            {"train": data.draw(st.integers(1, 600), "rows"), "test": 1},
            num_layers=data.draw(st.integers(1, 4)),
            width=data.draw(st.sampled_from([16, 48])),
            tokens=data.draw(st.sampled_from([("cls",), ("cls", "ap"), ("ap", "cls")])),
            dtype=data.draw(st.sampled_from(["float16", "float32", "bfloat16"])),
            batch_size=200,
        )
    with tempfile.TemporaryDirectory() as folder:
        split = write_cache(Path(folder), plan, make_content(plan))["train"]
        group = zarr.open_group(Path(folder) / "features.zarr" / "train", mode="r")
        together = np.concatenate([group["norm2"][:], group["final"][:]], axis=1)
        layers = data.draw(st.lists(st.sampled_from(split.layers), min_size=1), "layers")
        kinds = data.draw(st.lists(st.sampled_from(split.tokens), min_size=1), "tokens")
        want = together[:, [split.layers.index(layer) for layer in layers]]
        want = want[:, :, [split.tokens.index(kind) for kind in kinds]]
        np.testing.assert_array_equal(split.load(layers, kinds), want)
        np.testing.assert_array_equal(
            split.layer_map(layers[0])[:, split.tokens.index(kinds[0])], want[:, 0, 0]
        )
        wanted = data.draw(st.lists(st.integers(0, split.num_samples - 1), max_size=300), "wanted")
        batch_size = data.draw(st.integers(1, 99), "batch size")
        memory = data.draw(st.integers(3, 40), "batches") * batch_size * want[0].nbytes
        for method in METHODS:
            buffer = np.zeros((*want.shape[1:], len(wanted)), want.dtype).transpose(
                3, 0, 1, 2
            )  # not contiguous
            for out in (None, buffer):
                got = split.gather(wanted, layers, kinds, out, method=method)
                np.testing.assert_array_equal(got, want[np.array(wanted, int)])
            assert buffer is got
            _check_epoch(
                [*split.batches(batch_size, layers, kinds, 7, memory, method=method)], want, batch_size
            )


def _check_epoch(batches, want, batch_size):
    assert all(len(rows) == batch_size for rows, _ in batches[:-1])
    assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(len(want)))
    for rows, features in batches:
        np.testing.assert_array_equal(features, want[rows])


@pytest.fixture
def plan():
    return make_plan({"train": 300, "test": 90}, width=16)


@pytest.fixture
def content(plan):
    return make_content(plan)


@pytest.fixture
def split(tmp_path, plan, content):
    return write_cache(tmp_path, plan, content)["train"]


@pytest.mark.parametrize("method", METHODS)
def test_a_row_twice_does_not_hide_a_gap(split, method):
    """Three rows asked for and three rows between the first and the last of them, yet not the same."""
    rows = [6, 6, 8]
    everything = split.load(split.layers, split.tokens)
    got = split.gather(rows, split.layers, split.tokens, method=method)
    np.testing.assert_array_equal(got, everything[rows])


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_are_not_committed_are_nan(tmp_path, plan, content, method):
    columns = content["train"]
    write_cache(tmp_path, plan, content)
    inventory = plan.inventory.splits["train"]
    split = SplitReader(tmp_path / "features.zarr", inventory, inventory.blocks()[1:2])
    want = np.full((300, 2, 2, 16), np.nan, "f2")
    want[128:256] = np.concatenate([columns["final"], columns["norm2"][:, :1]], axis=1)[128:256]
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(
        split.gather(order, ["final", "0"], ["cls", "ap"], method=method), want[order]
    )
    np.testing.assert_array_equal(split.load(["final", "0"], ["cls", "ap"]), want)
    np.testing.assert_array_equal(split.layer_map("0"), want[:, 1])
    _check_epoch([*split.batches(50, ["final", "0"], ["cls", "ap"], 0, method=method)], want, 50)


def test_without_maps_files_are_read(split, content):
    with patch.object(LayerMaps, "__init__", side_effect=OSError(12, "no address space")):
        np.testing.assert_array_equal(
            split.gather([299, 0], ["1"], ["ap"])[:, 0, 0], content["train"]["norm2"][[299, 0], 1, 1]
        )
        with pytest.raises(RequestError, match="cannot be mapped on this system; use method='auto'"):
            split.gather([0], ["1"], ["ap"], method="map")
    assert not split.layer_map("1").flags.writeable


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.gather([300], ["0"], ["cls"]), IndexError, "rows must be from 0 to 299"),
        (lambda s: s.gather([-1], ["0"], ["cls"]), IndexError, "rows must be from 0 to 299"),
        (lambda s: s.gather([True], ["0"], ["cls"]), IndexError, "must be a list of integers, got bool"),
        (lambda s: s.gather([0.5], ["0"], ["cls"]), IndexError, "must be a list of integers, got float64"),
        (lambda s: s.gather([0], ["9"], ["cls"]), UnknownNameError, "unknown layer '9'"),
        (lambda s: s.gather([0], ["0"], ["cls"], method="mmap"), UnknownNameError, "did you mean map"),
        (
            lambda s: s.gather([0], ["0"], ["cls"], np.empty((1, 1, 1, 16))),
            ValueError,
            r"float16 of shape \(1, 1",
        ),
        (lambda s: s.batches(0, ["0"], ["cls"], 0), RequestError, "batch_size must be at least 1, not 0"),
        (
            lambda s: s.batches(64, ["0"], ["cls"], 0, 4096),
            RequestError,
            "3 batches of 64 rows, 6144 bytes, not 4096",
        ),
        (lambda s: s.batches(64, ["0"], ["cls"], 0, part=(2, 2)), RequestError, r"part must be \(i, n\)"),
    ],
)
def test_wrong_requests(split, call, error, message):
    with pytest.raises(error, match=message):
        call(split)


def test_maps_cannot_be_written(split):
    layer = split.layer_map("0")
    with pytest.raises(ValueError, match="read-only"):
        layer[0] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        layer.flags.writeable = True


def test_a_map_outlives_its_reader(tmp_path, plan, content):
    layer = write_cache(tmp_path, plan, content)["train"].layer_map("2")
    np.testing.assert_array_equal(layer, content["train"]["norm2"][:, 2])


def gather_all(split):
    """What a worker process does."""
    return split.gather(np.arange(split.num_samples)[::-1], split.layers, split.tokens)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_other_processes_read_too(split, context):
    want = gather_all(split)  # so that maps are open when the process forks
    with multiprocessing.get_context(context).Pool(2) as pool:
        for got in pool.map(gather_all, [split, split]):
            np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(gather_all(pickle.loads(pickle.dumps(split))), want)


def test_a_read_only_cache_is_enough(tmp_path, plan, content):
    write_cache(tmp_path, plan, content)
    paths = [tmp_path, *tmp_path.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        split = open_cache(tmp_path)["train"]
        for method in METHODS:
            assert split.gather([0], split.layers, split.tokens, method=method).shape == (1, 4, 2, 16)
    finally:
        for path in paths:
            path.chmod(0o755)


def test_scikit_learn_takes_a_mapped_layer(split, content):
    features = split.layer_map("final")[:, 0]
    fitted = LogisticRegression(max_iter=50).fit(features, split.labels())
    want = LogisticRegression(max_iter=50).fit(content["train"]["final"][:, 0, 0], content["train"]["label"])
    np.testing.assert_array_equal(fitted.predict(features), want.predict(content["train"]["final"][:, 0, 0]))


def test_windows_mix_a_split_that_is_sorted_by_class():
    # 10,000 rows of 100 classes, a window of 1,000: a plain window would see 10 classes.
    order = epoch_order(np.arange(10_000), stretch=20, window=1000, seed=0)
    assert np.array_equal(np.sort(order), np.arange(10_000))
    assert min(len(np.unique(window // 100)) for window in order.reshape(10, 1000)) > 30
    assert np.array_equal(order, epoch_order(np.arange(10_000), 20, 1000, 0))
    assert not np.array_equal(order, epoch_order(np.arange(10_000), 20, 1000, 1))
    parts = [epoch_order(np.arange(10_000), 20, 1000, 0, (i, 3)) for i in range(3)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(10_000))


# Streams an epoch and prints by how many bytes the anonymous memory of the process grew.
STREAM = """
import sys
from featcache.store.reading.reader import open_cache
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
split = open_cache(sys.argv[1])["train"]
before, most, rows = anonymous(), 0, 0
for batch, _ in split.batches(256, split.layers, split.tokens, 0, int(sys.argv[3]), method=sys.argv[2]):
    rows += len(batch)
    most = max(most, anonymous() - before)
assert rows == split.num_samples
print(most)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells anonymous memory apart")
def test_streaming_stays_within_its_budget(tmp_path):
    plan = make_plan({"train": 32_768, "test": 1}, num_layers=4, width=384, batch_size=512)
    columns = {
        split: {name: np.zeros(array.shape, array.stored_dtype) for name, array in inventory.arrays.items()}
        for split, inventory in plan.inventory.splits.items()
    }
    write_cache(tmp_path, plan, columns)
    budget = plan.inventory.num_bytes // 8
    for method in METHODS:
        command = [sys.executable, "-c", STREAM, str(tmp_path), method, str(budget)]
        grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert grown < budget + 20 * 2**20, method


def test_a_cache_is_a_mapping_of_its_splits(tmp_path, plan, content):
    write_cache(tmp_path, plan, content)
    cache = open_cache(tmp_path)
    assert "train" in cache
    assert "no such split" not in cache
    assert len(cache) == len(list(cache)) == len(plan.inventory.splits)
    assert [cache[name].num_samples for name in cache] == [
        s.num_samples for s in plan.inventory.splits.values()
    ]
