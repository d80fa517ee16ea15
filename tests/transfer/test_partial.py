"""Partial copies: what they say, what they refuse, and how they are mended."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from featcache.store.catalogue import scan
from featcache.store.checking.verify import verify
from featcache.store.errors import PartialCacheError, RequestError, UnknownNameError
from featcache.store.inventory import Inventory
from featcache.store.partial_copy import PartialCopy
from featcache.store.planning import TokenArray, plan_arrays
from featcache.store.reading.reader import open_cache
from featcache.store.transfer.selection import CacheSelection
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, make_plan
from support.hostile_server import HostileHandler, Site
from support.servers import http_server


def rich_inventory() -> Inventory:
    """Two taps, patches of two layers, a projection."""
    arrays = [
        TokenArray("norm2", "pooled", tuple("012345"), 6, ("cls", "ap"), 8),
        TokenArray("mlp", "pooled", tuple("135"), 6, ("cls", "ap"), 32),
        TokenArray("norm2", "patches", ("5",), 6, ("patch0", "patch1"), 8),
        TokenArray("final", "pooled", ("final",), 1, ("cls", "ap"), 8),
        TokenArray("final", "patches", ("final",), 1, ("patch0", "patch1"), 8),
    ]
    splits = {name: plan_arrays(name, 200, arrays, 8, "float16", 12) for name in ("train", "test")}
    return Inventory(splits, ("a", "b"), (8, 4))


def held_layers(inventory: Inventory, split: str) -> dict[str, tuple[str, ...]]:
    return {a.name: a.layers for a in inventory.splits[split].arrays.values() if a.layers}


@pytest.mark.parametrize(
    ("choice", "layers"),
    [
        (CacheSelection(layers="last"), {"final": ("final",), "final_patches": ("final",)}),
        (CacheSelection(layers="last", patches=False), {"final": ("final",)}),
        (CacheSelection(layers="0,5", patches=False), {"norm2": ("0", "5"), "mlp": ("5",)}),
        (
            CacheSelection(layers="mid+last", taps=("mlp",), patches=False),
            {"mlp": ("3",), "final": ("final",)},
        ),
        (CacheSelection(taps=("mlp",), patches=False), {"mlp": ("1", "3", "5"), "final": ("final",)}),
        (
            CacheSelection(layers="all", taps=("norm2",), patches=False),
            {"norm2": tuple("12345"), "final": ("final",)},
        ),
    ],
)
def test_a_choice_names_layers_taps_and_patches(choice, layers):
    part = choice.of(rich_inventory(), 6)
    for split in ("train", "test"):
        assert held_layers(part, split) == layers
        assert {"label", "sample_id", "valid"} <= part.splits[split].arrays.keys()
    only = evolve(choice, splits=("test",)).of(rich_inventory(), 6)
    assert list(only.splits) == ["test"]


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        (CacheSelection(layers="7"), UnknownNameError, "layer '7'"),
        (CacheSelection(layers="las"), UnknownNameError, "did you mean last"),
        (CacheSelection(taps=("attn",)), UnknownNameError, "tap 'attn'"),
        (CacheSelection(splits=("val",)), UnknownNameError, "split 'val'"),
        (CacheSelection(layers="0", taps=("mlp",)), RequestError, "nothing of the cache is chosen"),
    ],
)
def test_choices_that_cannot_be(choice, error, message):
    with pytest.raises(error, match=message):
        choice.of(rich_inventory(), 6)


choices = st.builds(
    CacheSelection,
    st.sampled_from([(), ("test",), ("train",)]),
    st.sampled_from([None, "last", "all", "every", "quarters", "0,5", "1,final"]),
    st.sampled_from([(), ("norm2",), ("norm2", "mlp")]),
    st.booleans(),
)


@given(st.lists(choices, min_size=1, max_size=4))
def test_parts_add_up_in_any_order(some):
    """What is held after some pulls is the union, whatever came first; what is lacking and what is held make the whole."""
    whole = rich_inventory()
    parts = [choice.of(whole, 6) for choice in some]
    forth, back = parts[0], parts[-1]
    for part in parts:
        forth = forth.plus(part)
    for part in reversed(parts):
        back = back.plus(part)
    assert forth == back
    assert all(forth.covers(part) and whole.covers(part) for part in parts)
    assert forth.common(whole) == whole.common(forth) == forth
    lacking = whole.minus(forth)
    assert forth.plus(lacking) == whole.plus(forth)
    assert not lacking.common(forth).splits


@pytest.fixture
def part(pushed_once, made_once, tmp_path) -> Path:
    """The last layer alone."""
    shutil.copytree(pushed_once.parent / "old", tmp_path / "root")
    return tmp_path / "root" / made_once.name


def test_what_takes_the_whole_cache_is_refused(part, cli, pushed_once):
    origin = PartialCopy.read(part).origin
    assert origin == f"{pushed_once}/made/{part.name}"
    with pytest.raises(PartialCacheError, match=f"complete it first: featcache pull {origin}"):
        CacheWriter(part, make_plan())
    with pytest.raises(UnknownNameError, match="layer"):
        open_cache(part)["test"].load(["0"], ["cls"])
    state = [line for line in cli("info").out.splitlines() if line.startswith(("state", "from"))]
    assert state == ["state     a partial copy: 1 of 4 layers", f"from      {origin}"]


def test_damage_in_a_partial_copy_is_fetched_again(part, cli):
    chunk = part / "features.zarr/test/final/c.0.0.0.0"
    chunk.write_bytes(b"x" * chunk.stat().st_size)
    found = cli("verify")
    assert found.status == 1
    assert f"--check --root {part.parent.parent}` to fetch what is damaged again" in found.out
    assert cli("verify", "--repair").status == 0
    assert verify(part).intact
    chunk.write_bytes(b"x" * chunk.stat().st_size)
    command = found.out.partition("featcache pull ")[2].partition("`")[0].split()
    # It names what is held, so that no more than that is fetched.
    assert cli("pull", *command).status == 0
    assert verify(part).intact
    (part / "held.json").write_text("{}")
    assert cli("verify").status == 1
    assert json.loads(cli("ls", "--json").out)[0]["state"] == "damaged"


def test_a_whole_copy_goes_before_a_partial_one(part, made_once, tmp_path):
    shutil.copytree(made_once.directory, tmp_path / "second" / made_once.name)
    found = list(scan([tmp_path / "root", tmp_path / "second"]))
    assert [entry.root for entry in found] == [tmp_path / "second"]


def test_removing_from_a_shared_folder_takes_the_entry_too(pushed_once, made_once, cli, tmp_path):
    shutil.copytree(pushed_once, tmp_path / "share")
    assert cli("rm", made_once.name, "--yes", "--root", tmp_path / "share").status == 0
    assert json.loads(cli("ls", tmp_path / "share", "--json").out) == []


def test_a_file_that_was_begun_goes_on(pushed_once, made_once, cli, tmp_path):
    """Only the rest of it moves, and the digest is that of all of it."""
    site = Site(all_files(pushed_once))
    chunk = "features.zarr/train/norm2/c.1.2.0.0"
    data = site.files[f"{made_once.name}/{chunk}"]
    begun = tmp_path / "other" / made_once.name / f"{chunk}.pull.partial"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(data[:1000])
    with http_server(type("Handler", (HostileHandler,), {"site": site})) as port:
        address = f"http://127.0.0.1:{port}/{made_once.name}"
        assert cli("pull", address, "--root", tmp_path / "other").status == 0
        ranges = [h.get("Range") for _, path, h in site.asked if path.endswith(chunk)]
        assert ranges == ["bytes=1000-"]
        assert verify(tmp_path / "other" / made_once.name).intact
        # One that was begun with other bytes is fetched from its beginning.
        shutil.rmtree(tmp_path / "other")
        begun.parent.mkdir(parents=True)
        begun.write_bytes(b"x" * 1000)
        assert cli("pull", address, "--root", tmp_path / "other").status == 0
        assert verify(tmp_path / "other" / made_once.name).intact


def test_what_lies_there_is_believed_only_by_its_digest(pushed_once, made_once, cli, tmp_path):
    """Files of the right size, of an interrupted pull of other values: those that are right stay, the others are fetched."""
    copy = tmp_path / "other" / made_once.name
    for chunk in ("features.zarr/train/norm2/c.1.2.0.0", "features.zarr/train/norm2/c.1.1.0.0"):
        data = (made_once.directory / chunk).read_bytes()
        (copy / chunk).parent.mkdir(parents=True, exist_ok=True)
        (copy / chunk).write_bytes(data if chunk.endswith("1.1.0.0") else b"x" * len(data))
    done = cli("pull", f"{pushed_once}/{made_once.name}", "--root", tmp_path / "other", "--json")
    assert json.loads(done.out)["files"] == 27
    assert verify(copy).intact


def test_ctrl_c_ends_a_pull_at_once(pushed_once, made_once, cli, tmp_path):
    site = Site(all_files(pushed_once))

    def slow(handler, data):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        try:
            for byte in data:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            handler.close_connection = True

    site.acts[f"{made_once.name}/features.zarr/train/norm2/c.1.2.0.0"] = slow
    with http_server(type("Handler", (HostileHandler,), {"site": site})) as port:
        program = str(Path(sys.executable).parent / "featcache")
        address = f"http://127.0.0.1:{port}/{made_once.name}"
        process = subprocess.Popen(
            [program, "pull", address, "--root", tmp_path / "other"], stderr=subprocess.PIPE, text=True
        )
        while not any(path.endswith("c.1.2.0.0") and "norm2" in path for _, path, _ in site.asked):
            time.sleep(0.01)
        started = time.perf_counter()
        process.send_signal(2)
        _, err = process.communicate(timeout=30)
        assert time.perf_counter() - started < 10
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("featcache: interrupted")
    assert not (tmp_path / "other" / made_once.name / "manifest.json").exists()
    site.acts.clear()
