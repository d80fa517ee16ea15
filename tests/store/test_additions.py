"""What is added to a complete cache later: splits, arrays, layers; the result does not tell in what order."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import zarr

from featcache.store.catalogue import stale_files
from featcache.store.checking.repair import repair
from featcache.store.checking.verify import verify
from featcache.store.errors import CacheCompletedError, CacheError, UnknownNameError
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.planning import TokenArray, plan_arrays
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import (
    all_files,
    cache_folder,
    make_content,
    make_spec,
    write_blocks,
)

L, D = 3, 4
ROWS = {"train": 300, "test": 90}
KINDS = ("cls", "ap")
NORM2 = TokenArray("norm2", "pooled", ("0", "1", "2"), L, KINDS, D)
FINAL = TokenArray("final", "pooled", ("final",), 1, KINDS, D)
MLP = TokenArray("mlp", "pooled", ("0", "1", "2"), L, KINDS, 4 * D)
PATCHES = TokenArray("norm2", "patches", ("1",), L, tuple(f"patch{i}" for i in range(4)), D)
FINAL_PATCHES = replace(PATCHES, tap="final", layers=("final",), depth=1)


def plan_of(splits) -> Plan:
    """A plan of `splits`: name -> token arrays."""
    inventory = Inventory(
        {
            name: plan_arrays(name, ROWS[name], arrays, D, "float16", 12, content_digest=True)
            for name, arrays in splits.items()
        },
        ("class 0", "class 1", "class 2"),
    )
    return Plan(make_spec(L, D), inventory, 32)


WHOLE = plan_of(dict.fromkeys(ROWS, (NORM2, FINAL, MLP, PATCHES, FINAL_PATCHES)))
CONTENT = make_content(WHOLE)
ORDERS = {
    "splits": [{"test": (FINAL, NORM2)}, {"train": (FINAL,)}],
    "layers": [
        {"train": (replace(NORM2, layers=("1",)), FINAL), "test": (FINAL,)},
        {"train": (replace(NORM2, layers=("0", "2")), FINAL)},
    ],
    "arrays": [
        {"train": (FINAL, NORM2), "test": (NORM2, FINAL)},
        {"train": (FINAL, PATCHES), "test": (FINAL, MLP)},
    ],
}


def held_content(plan: Plan):
    """The values that a plan writes: of an array with layers only those that are planned."""
    return {
        split.name: {
            array.name: CONTENT[split.name][array.name][:, [array.position(layer) for layer in array.layers]]
            if array.layers
            else CONTENT[split.name][array.name]
            for array in split.arrays.values()
        }
        for split in plan.inventory.splits.values()
    }


def add(folder, plan: Plan, projection=None) -> None:
    with CacheWriter(folder, plan, projection=projection) as writer:
        write_blocks(writer, held_content(writer.plan))
        writer.finish({"model_names": ["tiny"], "dataset_names": ["made"], "completed_at": 1.0}, "# card\n")


def assert_same(folder, wanted) -> None:
    """All files but provenance equal those of `wanted`, which was written at once."""
    got, whole = all_files(folder), all_files(wanted)
    del got["provenance.json"], whole["provenance.json"]
    assert got == whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = cache_folder(tmp_path_factory.mktemp("whole"), WHOLE)
    add(folder, WHOLE)
    return folder


@pytest.mark.parametrize("steps", ORDERS.values(), ids=ORDERS)
def test_the_order_of_additions_leaves_no_trace(tmp_path, whole, steps):
    folder = cache_folder(tmp_path, WHOLE)
    before = {}
    for splits in steps:
        add(folder, plan_of(splits))
        assert verify(folder).intact
        now = all_files(folder)
        data = {path: content for path, content in now.items() if "/c." in path}
        assert before.items() <= data.items()  # nothing is rewritten
        before = data
    add(folder, WHOLE)
    assert_same(folder, whole)
    assert verify(folder).intact
    with pytest.raises(CacheCompletedError):
        CacheWriter(folder, WHOLE)
    assert not (folder / "journal").exists()


def test_views_read_what_zarr_reads(whole):
    cache = open_cache(whole)
    for name in ROWS:
        group = zarr.open_group(whole / "features.zarr" / name, mode="r")
        for array in (NORM2, MLP, PATCHES):
            view = cache[name].view(array.tap, array.group)
            expected = group[array.name][:][:, [int(layer) for layer in array.layers]]
            blocks = [layer for layer in view.layers if layer != "final"]
            assert blocks == list(array.layers)
            np.testing.assert_array_equal(view.load(blocks, view.tokens), expected)
            np.testing.assert_array_equal(
                view.gather([5, 3], blocks, view.tokens[::-1]), expected[[5, 3], :, ::-1]
            )
        # Layers that are not held are there for Zarr, as NaN.
        assert np.isnan(group["norm2_patches"][:, [0, 2]]).all()
        assert cache[name].view("mlp").layers == ("0", "1", "2")
        assert cache[name].view(group="patches").layers == ("1", "final")
    with pytest.raises(UnknownNameError, match="'attn'"):
        cache["train"].view("attn")
    with pytest.raises(UnknownNameError, match="did you mean norm2_patches"):
        cache["train"].view(group="patch")


def test_readers_see_the_old_cache_until_an_addition_is_whole(tmp_path, whole):
    folder = cache_folder(tmp_path, WHOLE)
    add(folder, plan_of(ORDERS["arrays"][0]))
    reader = open_cache(folder)
    with CacheWriter(folder, WHOLE) as writer:
        block = writer.claim()
        write_blocks(writer, held_content(writer.plan))
        assert not writer.complete
        assert verify(folder).intact
        assert "mlp" not in open_cache(folder).inventory.splits["train"].arrays
        with pytest.raises(CacheError, match="being added to"):
            repair(verify(folder))
        with pytest.raises(CacheError, match="another plan"):
            CacheWriter(folder, plan_of(ORDERS["arrays"][1]))
        del block
    assert verify(folder).intact  # a journal of an unfinished addition belongs to the cache
    np.testing.assert_array_equal(reader["train"].load(["0"], KINDS)[:, 0], CONTENT["train"]["norm2"][:, 0])
    with CacheWriter(folder, plan_of(ORDERS["arrays"][1]), adopt=True) as writer:
        assert writer.plan.inventory == WHOLE.inventory.minus(
            reader.inventory
        )  # the other's run is taken up first
    add(folder, WHOLE)
    assert_same(folder, whole)


def test_an_abandoned_addition_can_be_dropped(tmp_path):
    folder = cache_folder(tmp_path, WHOLE)
    add(folder, plan_of(ORDERS["splits"][0]))
    before = all_files(folder)
    with CacheWriter(folder, WHOLE) as writer:
        block = writer.claim()
        writer.commit(_filled(block, writer.plan))
        writer.claim()
    assert all_files(folder) != before
    (found,) = stale_files.find_stale_files(tmp_path, 0.0, now=time.time() + 60)
    assert found.kind == "addition"
    assert found.num_bytes > 0
    found.remove()
    assert all_files(folder) == before
    assert verify(folder).intact
    assert not stale_files.find_stale_files(tmp_path, 0.0, now=time.time() + 60)


def _filled(block, plan):
    content = held_content(plan)[block.block.split]
    block.append({name: values[block.block.start : block.block.stop] for name, values in content.items()})
    return block


def test_a_projection_is_kept_beside_the_splits(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((D, 6)).astype("<f4")
    planned = plan_of({"test": (FINAL,)})
    plan = replace(planned, inventory=replace(planned.inventory, projection=matrix.shape))
    at_once, later = tmp_path / "at once", tmp_path / "later"
    add(at_once, plan, matrix)
    add(later, planned)
    assert open_cache(later).projection() is None
    add(later, plan, matrix)
    assert_same(later, at_once)
    for folder in (at_once, later):
        assert verify(folder).intact
        np.testing.assert_array_equal(open_cache(folder).projection(), matrix)
        np.testing.assert_array_equal(
            zarr.open_group(folder / "features.zarr", mode="r")["projection"][:], matrix
        )
    chunk = at_once / "features.zarr" / "projection" / "c.0.0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    (damage,) = verify(at_once).damages
    assert damage.location.path == "features.zarr/projection/c.0.0"
    assert not repair(verify(at_once)).complete
    add(at_once, plan, matrix)
    assert_same(at_once, later)


ADDER = """
import sys, time
from pathlib import Path
from test_additions import WHOLE, add, held_content
from featcache.store.errors import CacheCompletedError
import support.caches as caches
pause = float(sys.argv[2])
fill = caches.fill_block
caches.fill_block = lambda block, content, batch: fill(block, content, batch, pause)
try:
    add(Path(sys.argv[1]), WHOLE)
except CacheCompletedError:
    pass
"""


def test_an_addition_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path, whole):
    folder = cache_folder(tmp_path, WHOLE)
    add(folder, plan_of(ORDERS["layers"][0]))
    base = {path: content for path, content in all_files(folder).items() if "/c." in path}
    rng, here = random.Random(0), os.path.dirname(__file__)
    path = os.pathsep.join((here, os.path.dirname(here), *sys.path))
    kills = 0
    for attempt in range(9):
        pause = "0.2" if attempt < 8 else "0"
        process = subprocess.Popen(
            [sys.executable, "-c", ADDER, folder, pause], env={**os.environ, "PYTHONPATH": path}
        )
        if attempt < 8:
            time.sleep(rng.uniform(0.4, 1.2))
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        found = verify(folder)
        assert found.complete
        assert not found.damages
        assert base.items() <= all_files(folder).items()
    assert kills >= 4
    assert_same(folder, whole)
