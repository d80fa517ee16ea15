"""A chunk file that is cut while it is mapped gives an error, never the end of the process or a wrong value."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from featcache.store.errors import CacheError
from featcache.store.reading import guard
from featcache.store.reading.reader import open_cache
from support.caches import make_content, make_plan, write_cache

pytestmark = pytest.mark.skipif(
    not guard.supported(), reason="maps are not used where they cannot be guarded"
)
CUT = "was cut, or its disk failed, while it was read"


@pytest.fixture
def split(tmp_path):
    plan = make_plan({"train": 300, "test": 1}, width=32)
    return write_cache(tmp_path / "cache", plan, make_content(plan))["train"]


def chunk(tmp_path, layer=0, block=0):
    return tmp_path / "cache/features.zarr/train/norm2" / f"c.{block}.{layer}.0.0"


def test_a_gather_says_which_file_was_cut_and_the_next_one_reads_anew(split, tmp_path):
    rows = list(range(300))
    whole = split.gather(rows, split.layers, split.tokens, method="map")
    path = chunk(tmp_path, 1, 2)
    content = path.read_bytes()
    os.truncate(path, 100)
    with pytest.raises(CacheError, match=rf"{path}: {CUT}"):
        split.gather(rows, split.layers, split.tokens, method="map")
    with pytest.raises(CacheError, match=f"{path}: 100 bytes, must be {len(content)}"):
        split.gather(rows, split.layers, split.tokens, method="map")
    path.write_bytes(content)
    np.testing.assert_array_equal(split.gather(rows, split.layers, split.tokens, method="map"), whole)


@pytest.mark.parametrize("kinds", [("cls", "ap"), ("ap",)])
@pytest.mark.parametrize("left", [1, 100, 4095, 8192 + 63, 16384 - 4096, 16384 - 70, 16384 - 1])
def test_a_page_that_is_cut_in_its_middle_is_no_zeros(split, tmp_path, left, kinds):
    """The system reads zeros behind the end within its page. Each row alone, so that no other page tells."""
    split.gather(range(300), ["1"], kinds, method="map")
    path = chunk(tmp_path, 1, 1)
    content = path.read_bytes()
    os.truncate(path, left)
    for row in (128, *range(128 + left // 128 - 2, 128 + left // 128 + 3), 255):
        if not 128 <= row < 256:
            continue
        with pytest.raises(CacheError, match=f"{path}: was cut"):
            split.gather([row], ["1"], kinds, method="map")
        path.write_bytes(content)  # so that the next row has a map of its own
        split.gather([0], ["1"], kinds, method="map")
        os.truncate(path, left)


@pytest.mark.parametrize("then", ["removed", "replaced", "overwritten"])
def test_a_cut_is_told_whatever_becomes_of_the_name(split, tmp_path, then):
    """The map shows the file that was cut, not the one that has its name now."""
    split.gather([255], ["1"], split.tokens, method="map")
    path = chunk(tmp_path, 1, 1)
    content = bytearray(path.read_bytes())
    if then == "overwritten":
        content[-1] ^= 0x55
        with path.open("r+b") as file:
            file.write(content)
    else:
        os.truncate(path, len(content) - 100)
        path.unlink()
    if then == "replaced":
        path.write_bytes(content)
    with pytest.raises(CacheError, match=f"{path}: was cut"):
        split.gather([255], ["1"], split.tokens, method="map")


def test_data_that_end_in_zeros_are_read(tmp_path):
    plan = make_plan({"train": 300, "test": 1}, width=32)
    content = make_content(plan)
    for values in content["train"].values():
        if values.ndim > 2:
            values[..., -3:] = 0
    split = write_cache(tmp_path / "cache", plan, content)["train"]
    for method in ("map", "read"):
        np.testing.assert_array_equal(
            split.gather(range(300), split.layers, split.tokens, method=method),
            split.load(split.layers, split.tokens),
        )
    os.truncate(chunk(tmp_path, 0, 0), 16384 - 1)
    with pytest.raises(CacheError, match="was cut while it was read, to 16383 of 16384 bytes"):
        split.gather([127], ["0"], split.tokens, method="map")


def test_rows_of_other_files_are_read_all_the_same(split, tmp_path):
    whole = split.gather([0, 299], ["0"], ["cls"], method="map")
    os.truncate(chunk(tmp_path, 0, 1), 0)
    np.testing.assert_array_equal(split.gather([0, 299], ["0"], ["cls"], method="map"), whole)


def test_plain_reads_name_the_file(split, tmp_path, monkeypatch):
    """Cut after its size was checked, when it is read."""
    path, preadv = chunk(tmp_path, 1, 2), os.preadv

    def cut_and_read(descriptor, buffers, offset):
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            os.truncate(path, 100)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", cut_and_read)
    for read in (split.load, lambda *which: split.gather([299], *which, method="read")):
        with pytest.raises(CacheError, match=rf"{path}: was cut at byte \d+ while it was read"):
            read(["1"], split.tokens)
        path.write_bytes(bytes(16384))


def test_a_failing_disk_names_the_file(split, tmp_path, monkeypatch):
    def fail(descriptor, buffers, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CacheError, match=r"c\.0\.0\.0\.0: cannot be read at byte 0 \(Input/output error\)"):
        split.load(["0"], split.tokens)


def test_batches_end_in_the_error(split, tmp_path):
    batches = split.batches(8, split.layers, split.tokens, 0, memory=50_000, method="map")
    next(batches)
    os.truncate(chunk(tmp_path), 0)
    with pytest.raises(CacheError, match=CUT):
        list(batches)


def test_a_mapped_array_reads_as_nan_and_a_line_says_so(split, tmp_path, capfd):
    layer = split.layer_map("0")
    before = np.array(layer)
    os.truncate(chunk(tmp_path, 0, 1), 4096)
    assert np.isnan(layer.sum(dtype=np.float64))
    assert f"{chunk(tmp_path, 0, 1)}: {CUT}" in capfd.readouterr().err
    # All of the lost file, so that nothing is half right; the others keep their values.
    assert np.isnan(layer[128:256]).all()
    np.testing.assert_array_equal(layer[:128], before[:128])
    np.testing.assert_array_equal(layer[256:], before[256:])
    with pytest.raises(CacheError, match="4096 bytes, must be"):
        split.layer_map("0")


def test_files_cut_in_the_middle_of_gathers(split, tmp_path):
    """Values are right or an error comes, whenever the cut happens."""
    rows = np.arange(300)
    whole = split.gather(rows, split.layers, split.tokens)
    path = chunk(tmp_path, 2, 0)
    content, errors = path.read_bytes(), 0
    for delay in np.linspace(0, 0.004, 25):
        threading.Timer(delay, os.truncate, (path, 0)).start()
        try:
            for _ in range(200):
                np.testing.assert_array_equal(split.gather(rows, split.layers, split.tokens), whole)
        except CacheError:
            errors += 1
        path.write_bytes(content)
    assert errors


def test_a_fault_elsewhere_goes_to_the_handler_before(tmp_path):
    """The guard takes nothing away from what other code does about this signal."""
    file = tmp_path / "file"
    file.write_bytes(bytes(8192))
    plan = make_plan({"train": 130, "test": 1}, width=32)
    write_cache(tmp_path / "cache", plan, make_content(plan))
    code = f"""
import faulthandler, mmap, os, sys
faulthandler.enable()
from pathlib import Path
from featcache.store.reading.reader import open_cache
split = open_cache(Path({str(tmp_path / "cache")!r}))["train"]
split.gather([0], split.layers, split.tokens, method="map")
mapped = mmap.mmap(os.open({str(file)!r}, os.O_RDONLY), 8192, prot=mmap.PROT_READ)
os.truncate({str(file)!r}, 0)
mapped[5000]
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == -7
    assert "Bus error" in ended.stderr


LATER_HANDLERS = """
import faulthandler, mmap, os, sys
from pathlib import Path
from featcache.store.reading.reader import open_cache
split = open_cache(Path(sys.argv[1]) / "cache")["train"]
split.gather([0], split.layers, split.tokens, method="map")
faulthandler.enable()
"""


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_a_handler_that_is_put_over_ours(split, tmp_path, whose):
    (tmp_path / "file").write_bytes(bytes(8192))
    code = {
        "ours": """
os.truncate(Path(sys.argv[1]) / "cache/features.zarr/train/norm2/c.0.0.0.0", 0)
split.gather([0], split.layers, split.tokens, method="map")
""",
        "another's": """
split.gather([0], split.layers, split.tokens, method="map")
mapped = mmap.mmap(os.open(Path(sys.argv[1]) / "file", os.O_RDONLY), 8192, prot=mmap.PROT_READ)
os.truncate(Path(sys.argv[1]) / "file", 0)
mapped[5000]
""",
    }[whose]
    command = [sys.executable, "-c", LATER_HANDLERS + code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if whose == "ours":
        assert ended.returncode == 1
        assert f"CacheError: {chunk(tmp_path)}: {CUT}" in ended.stderr
    else:  # each handler has its turn, and none hands over for ever
        assert ended.returncode == -7
        assert ended.stderr.count("Bus error") == 1


def test_maps_are_not_used_where_they_cannot_be_guarded(tmp_path, monkeypatch):
    plan = make_plan({"train": 130, "test": 1}, width=32)
    content = make_content(plan)
    write_cache(tmp_path / "cache", plan, content)
    monkeypatch.setattr(guard, "supported", lambda: False)
    split = open_cache(tmp_path / "cache")["train"]
    np.testing.assert_array_equal(
        split.gather([3, 1], ["final"], ["cls"])[:, 0, 0], content["train"]["final"][[3, 1], 0, 0]
    )
    assert split._copier.maps(["final"], "auto") is None
