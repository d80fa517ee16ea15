"""Looking ahead: few files are open, other processes find blocks to take, and a slow disk does not hold the device up."""

import os
from collections import deque
from itertools import islice
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from featcache.extraction.decoding.batch import ImageBatch
from featcache.extraction.decoding.worker_pool import AHEAD
from featcache.extraction.running import look_ahead, writing
from featcache.extraction.running.look_ahead import LOOK_AHEAD_ROWS, ClaimedBatches, part_rows
from featcache.extraction.running.pipeline import ImageInput, run_blocks
from featcache.extraction.sources.base import Sample, Source
from featcache.store.reading.reader import open_cache
from featcache.store.targets import SINGLE_LABEL, Targets
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, make_content, make_plan

from .test_pipeline import CPU, InMemory, fill
from .tiny import SIZE, to_tensor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

GPU_BATCH, GPU_WORKERS = 128, 16
LAYERS_OF_VIT_L = 24


class OneImage(Source):
    """Copies of one image."""

    name = "made"
    targets = Targets(SINGLE_LABEL, ("one",))
    identity = {"kind": "made"}  # noqa: RUF012

    def __init__(self, **rows):
        self._samples = {
            split: [Sample(f"{split}-{row}", 0) for row in range(count)] for split, count in rows.items()
        }

    @property
    def splits(self):
        return self._samples

    def image(self, split, row):
        return Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8))


class InstantPass:
    """A device that computes at once; `begun` counts its passes."""

    at_once = 1

    def __init__(self, plan):
        self._arrays = [array for array in plan.inventory.splits["train"].arrays.values() if array.layers]
        self.begun = 0

    def start(self, images):
        self.begun += 1
        values = {
            array.name: np.zeros((len(images[""]), *array.shape[1:]), array.stored_dtype)
            for array in self._arrays
        }
        return lambda: values

    def stop(self):
        """Nothing runs."""


def extract_at_once(writer, source, workers, device):
    """Run the pipeline with a device that computes at once."""
    return run_blocks(
        writer,
        ImageInput(source, to_tensor, SIZE, workers, CPU),
        dict.fromkeys(source.splits, device),
        lambda *done: None,
    )


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="only Linux lists open files")
def test_few_files_are_open_at_the_defaults_of_a_gpu(tmp_path, monkeypatch):
    rows = 8192
    plan = make_plan({"train": rows}, num_layers=LAYERS_OF_VIT_L, batch_size=GPU_BATCH)
    files = sum(array.files_per_block for array in plan.inventory.splits["train"].arrays.values())
    assert files == LAYERS_OF_VIT_L + 4
    before, counts = len(os.listdir("/proc/self/fd")), []
    append = BlockWriter.append

    def count(*arguments):
        counts.append(len(os.listdir("/proc/self/fd")) - before)
        append(*arguments)
        counts.append(len(os.listdir("/proc/self/fd")) - before)

    monkeypatch.setattr(BlockWriter, "append", count)
    with CacheWriter(tmp_path, plan) as writer:
        assert extract_at_once(writer, OneImage(train=rows), GPU_WORKERS, InstantPass(plan)) == rows
        assert writer.pending() == []
    assert files < max(counts) < 256


def test_blocks_that_are_claimed_or_resumed_have_no_open_file(tmp_path):
    plan = make_plan({"train": 600})
    content = make_content(plan)["train"]
    files = sum(array.files_per_block for array in plan.inventory.splits["train"].arrays.values())
    with CacheWriter(tmp_path, plan, checkpoint_s=0.0) as writer:
        for block in (writer.claim(), writer.claim()):
            start = block.block.start
            block.append({name: values[start : start + 32] for name, values in content.items()})
    with CacheWriter(tmp_path, plan) as writer:
        before = len(os.listdir("/proc/self/fd"))
        blocks = [writer.claim() for _ in range(4)]
        assert [block.rows for block in blocks] == [32, 32, 0, 0]
        assert len(os.listdir("/proc/self/fd")) - before == len(blocks), "a claim has a file of its own"
        first = blocks[0]
        first.append({name: values[32:128] for name, values in content.items()})
        assert len(os.listdir("/proc/self/fd")) - before == len(blocks) + files
        writer.commit(first)
        assert len(os.listdir("/proc/self/fd")) - before == len(blocks) - 1
        for block in blocks[1:]:
            rows = slice(block.block.start + block.rows, block.block.stop)
            block.append({name: values[rows] for name, values in content.items()})
            writer.commit(block)
        writer.claim().append({name: values[512:] for name, values in content.items()})
    with CacheWriter(tmp_path, plan) as writer:
        block = writer.claim()
        block.append({name: values[512:] for name, values in content.items()})
        writer.commit(block)
        writer.finish({}, "")
    reader = open_cache(tmp_path)["train"]
    np.testing.assert_array_equal(reader.load(["0"], ["cls", "ap"]), content["norm2"][:, :1])


@pytest.mark.parametrize("batch_size", [1, 16, 128, 1000])
@pytest.mark.parametrize("workers", [0, 1, 2, 16, 64])
def test_workers_look_ahead_by_rows(batch_size, workers):
    rows = part_rows(batch_size, workers)
    assert 1 <= rows <= batch_size
    assert rows == batch_size or workers * AHEAD * rows <= max(
        LOOK_AHEAD_ROWS, workers * AHEAD * look_ahead.MIN_PART_ROWS
    )
    if workers <= 2 and batch_size <= 128:
        assert rows == batch_size, "nothing has to be joined"


def test_parts_of_batches_change_no_byte(tmp_path, monkeypatch):
    broken = {("train", 5), ("train", 47), ("train", 130), ("test", 20)}
    fill(tmp_path / "whole", InMemory(broken), skip_failures=True)
    monkeypatch.setattr(look_ahead, "LOOK_AHEAD_ROWS", 20)
    monkeypatch.setattr(look_ahead, "MIN_PART_ROWS", 1)
    assert part_rows(48, 2) == 5
    told = []
    fill(tmp_path / "parts", InMemory(broken), workers=2, skip_failures=True, say=told.append)
    assert len(told) == len(broken)
    assert all_files(tmp_path / "parts") == all_files(tmp_path / "whole")


def _rows_of(rows):
    return rows.stop - rows.start


class Extraction:
    """One process at work on a cache: its loader holds as many parts as its workers look ahead to."""

    def __init__(self, writer, content, workers):
        self._writer, self._content = writer, content
        self._claimed = ClaimedBatches(writer, workers)
        self._look_ahead = workers * AHEAD
        self._batches = self._claimed.joined(self._decoded())
        self.done = 0

    def _decoded(self):
        rows, loading = iter(self._claimed), deque()
        while True:
            loading += islice(rows, self._look_ahead - len(loading))
            if not loading:
                return
            count = _rows_of(loading.popleft())
            yield ImageBatch(
                torch.zeros(count, 1), torch.zeros(count, 16), [], torch.zeros(count, 1), unavailable=[]
            )

    def step(self):
        """Extract one batch; False if nothing is left for this process."""
        block, rows, batch = next(self._batches, (None, None, None))
        if block is None:
            return False
        assert len(batch.images) == _rows_of(rows)
        columns = self._content[rows.split]
        block.append({name: values[rows.start : rows.stop] for name, values in columns.items()})
        if rows.stop == block.block.stop:
            self._writer.commit(block)
        self.done += _rows_of(rows)
        return True


@pytest.mark.parametrize("earlier", [0, 1, 10, 30])
def test_a_process_that_starts_later_gets_half_of_what_is_left(tmp_path, earlier):
    plan = make_plan({"train": 8192}, num_layers=1, width=1, batch_size=GPU_BATCH)
    content = make_content(plan)
    with CacheWriter(tmp_path, plan) as one, CacheWriter(tmp_path, plan) as other:
        first, second = (Extraction(writer, content, GPU_WORKERS) for writer in (one, other))
        for _ in range(earlier):
            first.step()
        left = 8192 - first.done
        while first.step() | second.step():
            pass
        assert one.pending() == []
        assert first.done + second.done == 8192
        assert second.done >= 0.45 * left


class HeldDisk:
    """A disk that takes nothing until `go` is set."""

    def __init__(self, monkeypatch):
        self.go = Event()
        append = BlockWriter.append

        def held(*arguments):
            assert self.go.wait(60)
            append(*arguments)

        monkeypatch.setattr(BlockWriter, "append", held)


class PassThatFreesTheDisk(InstantPass):
    """Lets the disk go on when `enough` passes have begun."""

    def __init__(self, plan, disk, enough):
        super().__init__(plan)
        self._disk, self._enough = disk, enough

    def start(self, images):
        features = super().start(images)
        if self.begun >= self._enough:
            self._disk.go.set()
        return features


def test_a_commit_that_waits_for_the_disk_does_not_hold_the_device_up(tmp_path, monkeypatch):
    plan = make_plan({"train": 600}, num_layers=2, batch_size=16)
    device = PassThatFreesTheDisk(plan, HeldDisk(monkeypatch), enough=30)
    with CacheWriter(tmp_path, plan) as writer:
        assert extract_at_once(writer, OneImage(train=600), 0, device) == 600
        assert writer.pending() == []


def test_what_waits_for_the_disk_is_bounded(tmp_path, monkeypatch):
    plan = make_plan({"train": 600}, num_layers=2, batch_size=16)
    monkeypatch.setattr(writing, "MAX_WAITING_BYTES", 1)
    disk = HeldDisk(monkeypatch)
    device = InstantPass(plan)
    begun = []
    wait = disk.go.wait
    monkeypatch.setattr(
        disk.go, "wait", lambda limit: wait(0.5) or begun.append(device.begun) or disk.go.set() or True
    )
    with CacheWriter(tmp_path, plan) as writer:
        assert extract_at_once(writer, OneImage(train=600), 0, device) == 600
    # One at the disk, one that was collected and waits for room, those that wait for their pass, and one being put.
    assert begun[0] <= 3 + writing.WAITING + device.at_once


@pytest.mark.parametrize("failing", [0, 3, 20])
def test_a_full_disk_ends_the_run_with_its_own_error(tmp_path, monkeypatch, failing):
    plan = make_plan({"train": 600}, num_layers=2, batch_size=16)
    append, calls = BlockWriter.append, []

    def full(block, *rest):
        calls.append(block)
        if len(calls) > failing:
            raise OSError(28, "No space left on device")
        append(block, *rest)

    monkeypatch.setattr(BlockWriter, "append", full)
    with CacheWriter(tmp_path, plan) as writer, pytest.raises(OSError, match="No space left on device"):
        extract_at_once(writer, OneImage(train=600), 0, InstantPass(plan))
    assert len(calls) == failing + 1, "nothing is written after a batch that failed"


def test_batches_before_one_that_fails_are_written(tmp_path, monkeypatch):
    plan = make_plan({"train": 600}, num_layers=2, batch_size=16)

    class Failing(InstantPass):
        def start(self, images):
            features = super().start(images)
            if self.begun <= 9:
                return features

            def fail():
                disk.go.set()
                raise RuntimeError("device lost")

            return fail

    disk = HeldDisk(monkeypatch)
    with CacheWriter(tmp_path, plan) as writer:
        with pytest.raises(RuntimeError, match="device lost"):
            extract_at_once(writer, OneImage(train=600), 0, Failing(plan))
        assert writer.committed_rows() == 128, "eight of the nine batches are a block"
