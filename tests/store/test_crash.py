"""A writing process that is killed at any moment leaves a cache that a second run completes to the very same bytes."""

import os
import random
import signal
import time

import numpy as np
import pytest

from featcache.store.errors import CacheCompletedError, CacheError, IncompleteCacheError
from featcache.store.inventory import Block
from featcache.store.reading.reader import open_cache
from featcache.store.writing.claims import Claims
from featcache.store.writing.writer import CacheWriter
from support.caches import (
    PROVENANCE,
    all_files,
    check_partial,
    fill_block,
    make_content,
    make_plan,
    write_blocks,
    write_cache,
)
from support.processes import start_writer

KILLS = int(os.environ.get("FEATCACHE_TEST_KILLS", "50"))


def test_killed_again_and_again_gives_the_same_bytes(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    write_cache(tmp_path / "whole", plan, content, PROVENANCE)
    whole = all_files(tmp_path / "whole")
    rng = random.Random(0)
    completed, kills = 0, 0
    while kills < KILLS:
        directory = tmp_path / f"killed-{completed}"
        process = start_writer(directory)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        _, errors = process.communicate()
        assert not errors
        if process.returncode == -signal.SIGKILL:
            kills += 1
            _check_partial(directory, content)
        if (directory / "manifest.json").exists():
            start_writer(
                directory
            ).communicate()  # what a kill left after the manifest goes with the next run
            assert all_files(directory) == whole
            completed += 1
    start_writer(directory).communicate()
    assert all_files(directory) == whole


def _check_partial(directory, content):
    """What counts as committed has the right values; the rest is absent."""
    try:
        cache = open_cache(directory, allow_partial=True)
    except CacheError:
        return  # killed before the plan was written
    check_partial(cache, content)


def test_processes_divide_the_blocks(tmp_path):
    samples = {"train": 1500, "test": 300}
    plan = make_plan(samples)
    write_cache(tmp_path / "whole", plan, make_content(plan), PROVENANCE)
    together = tmp_path / "together"
    processes = [start_writer(together, 0.01, samples) for _ in range(3)]
    # One of them dies on the way: the others take its block over.
    assert processes[0].stdout is not None
    processes[0].stdout.readline()
    processes[0].stdout.readline()
    processes[0].kill()
    committed = [
        line for process in processes for line in process.communicate()[0].splitlines() if " " in line
    ]
    assert [process.returncode for process in processes[1:]] == [0, 0]
    assert all_files(together) == all_files(tmp_path / "whole")
    # Besides the line that the dead process may have swallowed, every block was committed once.
    assert len(committed) == len(set(committed)) >= len(plan.inventory.blocks()) - 2


def test_leftovers_are_swept_and_never_read(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    write_cache(tmp_path / "whole", plan, content, PROVENANCE)
    cut = tmp_path / "cut"
    with CacheWriter(cut, plan):
        pass
    chunk_bytes = plan.inventory.splits["train"].arrays["norm2"].chunk_bytes
    leftovers = {
        "features.zarr/train/norm2/c.0.0.0.0.0123456789ab.partial": b"half a block",
        # A chunk under its final name, but of a block that was never committed.
        "features.zarr/train/norm2/c.0.0.0.0": b"\0" * chunk_bytes,
        "journal/.train.00001.claim.0123456789ab": b"",
        "journal/clock-0123456789ab": b"",
        "journal/zarr-metadata/train/zarr.json": b"{}",
        "journal/train.00000.json.partial": b'{"split": "train"',
        "journal/train.00000.progress.json": b'{"rows": 96',
        "journal/plan.json.partial": b"{",
        "provenance.json.partial": b"{",
        "README.md.partial": b"# a longer ca",
        "manifest.json.partial": b"{",
    }
    for name, data in leftovers.items():
        (cut / name).parent.mkdir(parents=True, exist_ok=True)
        (cut / name).write_bytes(data)
    for path in (cut / "features.zarr").rglob("zarr.json"):
        path.rename(path.with_name("zarr.json.partial"))
    claims = Claims(cut / "journal")
    assert claims.acquire("train.00000")
    claims.forget()  # as the kernel does it for a process that was killed
    assert check_partial(open_cache(cut, allow_partial=True), content) == 0
    with CacheWriter(cut, plan) as writer:
        write_blocks(writer, content)
        writer.finish(PROVENANCE, "# card\n")
    assert all_files(cut) == all_files(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_record_whose_files_do_not_hold_is_no_record(tmp_path, damage):
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
    with CacheWriter(tmp_path, plan):
        pass
    before = set(all_files(tmp_path))
    with pytest.raises(KeyboardInterrupt), CacheWriter(tmp_path, plan) as writer:  # noqa: PT012
        block = writer.claim()
        block.append({name: values[:32] for name, values in content["train"].items()})
        raise KeyboardInterrupt
    assert set(all_files(tmp_path)) == before
    with CacheWriter(tmp_path, plan) as writer:
        assert writer.pending()[0] == block.block


def append(writer, columns, stop, **changes):
    block = writer.claim()
    block.append({name: values[:stop] for name, values in {**columns, **changes}.items()})
    return block


def test_a_block_must_be_full_and_of_the_right_type(tmp_path):
    plan = make_plan()
    columns = make_content(plan)["train"]
    with CacheWriter(tmp_path, plan) as writer, pytest.raises(ValueError, match="has 128 rows, only 32 were"):
        writer.commit(append(writer, columns, 32))
    for stop, changes, message in (
        (129, {}, "has 128 rows, 129 were appended"),
        (9, {"final": columns["final"].astype("f4")}, "'final' takes float16"),
        (9, {"other": columns["final"]}, "a batch must hold"),
    ):
        with CacheWriter(tmp_path, plan) as writer, pytest.raises(ValueError, match=message):
            append(writer, columns, stop, **changes)
        assert list(tmp_path.rglob("*.partial")) == []


def test_a_block_goes_on_at_its_last_checkpoint(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    write_cache(tmp_path / "whole", plan, content, PROVENANCE)
    cut = tmp_path / "cut"
    with CacheWriter(cut, plan, checkpoint_s=0.0) as writer:
        append(writer, content["train"], 64)
    (damaged,) = (cut / "features.zarr" / "train" / "label").glob("*.partial")
    with CacheWriter(cut, plan) as writer:
        block = writer.claim()
        assert block.rows == 64
        assert not damaged.exists(), "its rows were copied: the other process might still be alive"
    with CacheWriter(cut, plan) as writer:
        assert writer.claim().rows == 64
    # Rows that do not have the recorded digest are not taken over.
    (damaged,) = (cut / "features.zarr" / "train" / "label").glob("*.partial")
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    with CacheWriter(cut, plan) as writer:
        block = writer.claim()
        assert block.rows == 0
        fill_block(block, content, 32)
        writer.commit(block)
        write_blocks(writer, content)
        writer.finish(PROVENANCE, "# card\n")
    assert all_files(cut) == all_files(tmp_path / "whole")


def test_metadata_that_was_damaged_in_the_meantime_is_written_again(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    write_cache(tmp_path / "whole", plan, content, PROVENANCE)
    cut = tmp_path / "cut"
    with CacheWriter(cut, plan) as writer:
        writer.commit(append(writer, content["train"], 128))
    for path in (cut / "features.zarr").rglob("zarr.json"):
        path.write_text(path.read_text().replace("a", "b", 1))
    with CacheWriter(cut, plan) as writer:
        write_blocks(writer, content)
        writer.finish(PROVENANCE, "# card\n")
    assert all_files(cut) == all_files(tmp_path / "whole")


def test_two_writers_never_hold_the_same_block(tmp_path):
    plan = make_plan()
    with CacheWriter(tmp_path, plan) as one, CacheWriter(tmp_path, plan) as other:
        claimed = [writer.claim().block for writer in (one, other, one, other)]
        assert sorted(claimed, key=lambda b: (b.split, b.index)) == sorted(
            plan.inventory.blocks(), key=lambda b: (b.split, b.index)
        )
        assert one.claim() is None
        assert other.claim() is None


def test_a_complete_cache_is_not_written_again(tmp_path):
    plan = make_plan()
    write_cache(tmp_path, plan, make_content(plan))
    before = all_files(tmp_path)
    with pytest.raises(CacheCompletedError, match="is complete already"):
        CacheWriter(tmp_path, plan)
    assert all_files(tmp_path) == before


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
        writer.commit(append(writer, content["train"], 128))
    with pytest.raises(IncompleteCacheError, match=r"3 of 4 blocks are missing \(train: 1, 2; test: 0\)"):
        open_cache(tmp_path)
    split = open_cache(tmp_path, allow_partial=True)["train"]
    assert split.valid().nonzero()[0].tolist() == list(range(128))
    found = split.gather([5, 200], ["final"], ["cls"])
    np.testing.assert_array_equal(found[0, 0, 0], content["train"]["final"][5, 0, 0])
    assert np.isnan(found[1]).all()
