"""Batches come out of worker processes in order and unchanged, and the death of a worker never leaves the run waiting."""

import os
import signal
import time
from multiprocessing import active_children
from threading import Thread

import pytest
import torch

from featcache.extraction.decoding import worker_pool
from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.decoding.worker_pool import AHEAD, WorkerError, decode_in_processes

# Python 3.12 and later warn where a process with threads forks.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.timeout(60),
]

SIDE = 96
BATCHES = [Rows("train", start, start + 8) for start in range(0, 80, 8)]


def batch_of(rows, dtype=torch.uint8):
    """A batch of more bytes than a socket holds, in the layout of 8-bit pixels, that tells its rows."""
    size = rows.stop - rows.start
    values = (torch.arange(size * SIDE * SIDE * 3) + rows.start) % 251
    images = values.to(dtype).view(size, SIDE, SIDE, 3).permute(0, 3, 1, 2)
    content = torch.full((size, 16), rows.start, dtype=torch.uint8)
    facts = torch.arange(size * 6).view(size, 6)
    return ImageBatch(images, content, [(1, f"row {rows.start + 1} is broken")], facts, ["gone"])


def assert_same(got, wanted):
    for ours, theirs in zip(got, wanted, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
        else:
            assert ours == theirs


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_batches_come_in_order_and_unchanged(workers, dtype):
    def load(rows):
        time.sleep(0.02 * (rows.start % 3))  # later batches are ready before earlier ones
        return batch_of(rows, dtype)

    got = list(decode_in_processes(load, BATCHES, workers))
    assert len(got) == len(BATCHES)
    for batch, rows in zip(got, BATCHES, strict=True):
        assert_same(batch, batch_of(rows, dtype))
    assert not active_children()


def test_rows_are_taken_no_further_ahead_than_said():
    taken = []

    def rows():
        for one in BATCHES:
            taken.append(one)
            yield one

    batches = decode_in_processes(batch_of, rows(), 2)
    next(batches)
    assert len(taken) == 2 * AHEAD + 1
    batches.close()
    assert not active_children()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [0, 3])
def test_a_worker_killed_while_it_decodes(workers, number):
    def load(rows):
        if rows == BATCHES[number]:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch_of(rows)

    with pytest.raises(
        WorkerError,
        match=r"^a process that decodes images came to an end \(killed by SIGKILL\), .* give --workers$",
    ):
        list(decode_in_processes(load, BATCHES, workers))
    assert not active_children()


def test_a_worker_killed_in_the_middle_of_a_batch_that_it_hands_over(monkeypatch):
    write, calls = os.write, []

    def write_a_part(descriptor, data):
        calls.append(len(data))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr("featcache.extraction.decoding.hand_over.os.write", write_a_part)
    with pytest.raises(WorkerError, match="SIGKILL"):
        list(decode_in_processes(batch_of, BATCHES, 2))


def test_a_worker_killed_while_nobody_waits_for_it():
    batches = decode_in_processes(batch_of, BATCHES, 2)
    next(batches)
    for child in active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        list(batches)


def test_a_worker_is_missed_though_another_process_holds_its_socket(monkeypatch):
    monkeypatch.setattr(worker_pool, "_POLL_S", 0.1)
    pipe, held = worker_pool.Pipe, []

    def pipe_and_copy():
        ours, theirs = pipe()
        held.append(os.dup(theirs.fileno()))
        return ours, theirs

    monkeypatch.setattr(worker_pool, "Pipe", pipe_and_copy)
    batches = decode_in_processes(batch_of, BATCHES, 1)
    next(batches)
    for child in active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        list(batches)
    for descriptor in held:
        os.close(descriptor)


def test_a_death_is_seen_outside_of_the_main_thread_too():
    def load(rows):
        os._exit(7)

    seen = []

    def run():
        try:
            list(decode_in_processes(load, BATCHES, 2))
        except WorkerError as error:
            seen.append(str(error))

    thread = Thread(target=run)
    thread.start()
    thread.join(30)
    assert seen
    assert "(exit status 7)" in seen[0]


class OddError(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ZeroDivisionError("by zero"), ZeroDivisionError), (OddError("too", "odd"), RuntimeError)],
)
def test_what_a_worker_raises_is_raised_here(error, kind):
    def load(rows):
        raise error

    with pytest.raises(kind, match=r"by zero|OddError: too odd"):
        list(decode_in_processes(load, BATCHES, 2))
    assert not active_children()


def test_processes_that_cannot_be_started_are_one_line(monkeypatch):
    started = []

    def start(load):
        if len(started) == 2:
            raise OSError(11, "Resource temporarily unavailable")
        started.append(worker(load))
        return started[-1]

    worker = worker_pool._start
    monkeypatch.setattr(worker_pool, "_start", start)
    with pytest.raises(
        WorkerError, match=r"^4 processes for decoding cannot be started \(Resource .*--workers$"
    ):
        list(decode_in_processes(batch_of, BATCHES, 4))
    assert not active_children()


def test_an_interruption_while_workers_start_is_not_lost(monkeypatch):
    """Python swallows exceptions in the hooks around a fork, where this one would be raised without care."""
    hooked = []

    def interrupt():
        if not hooked:
            hooked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "fork", lambda fork=os.fork: (interrupt(), fork())[1])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(decode_in_processes(batch_of, BATCHES, 3))
    assert hooked
    assert not active_children()
    assert signal.getsignal(signal.SIGINT) is before
