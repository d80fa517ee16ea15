"""A writing process that is killed at any moment leaves a cache that a second run completes to the very same bytes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featcache.store.errors import CacheBusyError, CacheError, IncompleteCacheError
from featcache.store.inventory import Block
from featcache.store.reader import open_cache
from featcache.store.writer import CacheWriter
from support.caches import all_files, make_content, make_plan, write_blocks, write_cache

KILLS = 8

# Feeds the real writer with prepared batches, slowly enough to be killed in the middle.
WRITE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.caches import make_content, make_plan
from featcache.store.writer import CacheWriter
plan = make_plan()
content = make_content(plan)
print("ready", flush=True)
with CacheWriter(Path(sys.argv[2]), plan) as writer:
    for block in writer.pending():
        with writer.block(block) as rows:
            for start in range(block.start, block.stop, 32):
                stop = min(start + 32, block.stop)
                rows.append({name: values[start:stop] for name, values in content[block.split].items()})
                time.sleep(0.004)
    writer.finish({"completed_at": 1.0}, "# card\\n")
"""


def start_writer(directory: Path) -> subprocess.Popen[bytes]:
    tests = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tests), str(directory)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_killed_then_resumed_gives_the_same_bytes(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    write_cache(tmp_path / "whole", plan, content, {"completed_at": 1.0})
    whole = all_files(tmp_path / "whole")
    rng = random.Random(0)
    interrupted = 0
    for attempt in range(KILLS):
        directory = tmp_path / f"killed-{attempt}"
        process = start_writer(directory)
        time.sleep(rng.uniform(0, 0.35))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        interrupted += not (directory / "manifest.json").exists()
        _check_partial(directory, content)
        process = start_writer(directory)
        process.communicate()
        # A run that was killed after the manifest was written has nothing left to do, and says so.
        assert (process.returncode == 0) or (directory / "manifest.json").exists()
        assert _without_journal(all_files(directory)) == whole
    assert interrupted >= KILLS // 2, "the kills came too late to test anything"


def _without_journal(files):
    return {path: data for path, data in files.items() if not path.startswith("journal/")}


def _check_partial(directory, content):
    """What counts as committed has the right values; the rest is absent."""
    try:
        cache = open_cache(directory, allow_partial=True)
    except CacheError:
        return  # killed before the plan was written
    for name, columns in content.items():
        split = cache[name]
        valid = split.valid()
        features = split.load(split.layers, split.tokens)
        assert np.isnan(features[~valid]).all()
        np.testing.assert_array_equal(features[valid][:, :-1], columns["norm2"][valid])
        np.testing.assert_array_equal(split.labels()[valid], columns["label"][valid])


def test_leftovers_are_swept_and_never_read(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    whole = write_cache(tmp_path / "whole", plan, content)
    cut = tmp_path / "cut"
    with CacheWriter(cut, plan) as writer:
        block = writer.pending()[0]
    leftover = cut / "features.zarr" / "train" / "norm2" / "c.0.0.0.0.partial"
    leftover.write_bytes(b"half a block")
    # A chunk under its final name, but of a block that was never committed.
    stray = cut / "features.zarr" / "train" / "norm2" / "c.0.0.0.0"
    stray.write_bytes(b"\0" * plan.inventory.splits["train"].arrays["norm2"].chunk_bytes)
    partial = open_cache(cut, allow_partial=True)["train"]
    assert np.isnan(partial.load(["0"], ["cls"])).all()
    with CacheWriter(cut, plan) as writer:
        assert not leftover.exists()
        assert writer.pending()[0] == block
        write_blocks(writer, content)
        writer.finish(whole.provenance, "# card\n")
    assert all_files(cut) == all_files(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_record_whose_files_do_not_hold_is_dropped(tmp_path, damage):
    plan = make_plan()
    content = make_content(plan)
    with CacheWriter(tmp_path, plan) as writer:
        write_blocks(writer, content)
        assert writer.pending() == []
    chunk = tmp_path / "features.zarr" / "train" / "final" / "c.1.0.0.0"
    if damage == "remove":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-1])
    with CacheWriter(tmp_path, plan) as writer:
        assert writer.pending() == [Block("train", 1, 128, 256)]
        with pytest.raises(CacheError, match="1 blocks are not written yet"):
            writer.finish({}, "")
    assert not (tmp_path / "manifest.json").exists()


def test_an_error_inside_a_block_leaves_nothing_of_it(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    with CacheWriter(tmp_path, plan) as writer:
        before = set(all_files(tmp_path))
        block = writer.pending()[0]
        with pytest.raises(KeyboardInterrupt), writer.block(block) as rows:  # noqa: PT012
            rows.append({name: values[:32] for name, values in content["train"].items()})
            raise KeyboardInterrupt
        assert set(all_files(tmp_path)) == before
        assert block in writer.pending()


def test_a_block_must_be_full_and_of_the_right_type(tmp_path):
    plan = make_plan()
    columns = make_content(plan)["train"]
    with CacheWriter(tmp_path, plan) as writer:
        block = writer.pending()[0]
        with (
            pytest.raises(ValueError, match="has 128 rows, only 32 were appended"),
            writer.block(block) as rows,
        ):
            rows.append({name: values[:32] for name, values in columns.items()})
        with pytest.raises(ValueError, match="has 128 rows, 129 were appended"), writer.block(block) as rows:
            rows.append({name: values[:129] for name, values in columns.items()})
        with pytest.raises(ValueError, match="'final' takes float16"), writer.block(block) as rows:
            rows.append(
                {name: v[:9].astype("f4") if name == "final" else v[:9] for name, v in columns.items()}
            )
        with pytest.raises(ValueError, match="a batch must hold"), writer.block(block) as rows:
            rows.append({"label": columns["label"][:1]})


def test_one_writer_at_a_time(tmp_path):
    plan = make_plan()
    with (
        CacheWriter(tmp_path, plan),
        pytest.raises(CacheBusyError, match="another process is writing this cache"),
    ):
        CacheWriter(tmp_path, plan)
    with CacheWriter(tmp_path, plan) as writer:
        write_blocks(writer, make_content(plan))
        writer.finish({}, "")
    with pytest.raises(CacheBusyError, match="just completed"):
        CacheWriter(tmp_path, plan)


def test_another_plan_does_not_overwrite_an_unfinished_cache(tmp_path):
    CacheWriter(tmp_path, make_plan()).__exit__(None, None, None)
    with pytest.raises(CacheError, match="another plan"):
        CacheWriter(tmp_path, make_plan(width=5))


def test_resume_keeps_the_batch_size_of_the_first_run(tmp_path):
    with CacheWriter(tmp_path, make_plan(batch_size=32)):
        pass
    with CacheWriter(tmp_path, make_plan(batch_size=64)) as writer:
        assert writer.plan.batch_size == 32


def test_readers_refuse_an_incomplete_cache_and_say_what_is_missing(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    with CacheWriter(tmp_path, plan) as writer:
        block = writer.pending()[0]
        with writer.block(block) as rows:
            rows.append({name: values[:128] for name, values in content["train"].items()})
    with pytest.raises(IncompleteCacheError, match=r"3 of 4 blocks are missing \(train: 1, 2; test: 0\)"):
        open_cache(tmp_path)
    split = open_cache(tmp_path, allow_partial=True)["train"]
    assert split.valid().nonzero()[0].tolist() == list(range(128))
    np.testing.assert_array_equal(
        split.gather([5, 200], ["final"], ["cls"])[0, 0, 0], content["train"]["final"][5, 0, 0]
    )
    assert np.isnan(split.gather([5, 200], ["final"], ["cls"])[1]).all()
