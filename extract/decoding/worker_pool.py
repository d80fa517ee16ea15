"""Worker processes that decode batches ahead of the forward pass; the death of one ends the run with one line."""

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from socket import SHUT_RDWR, socket
from threading import Event, Thread

import torch

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.decoding.hand_over import receive, send
from featcache.extraction.decoding.interrupts import deferred_interrupt
from featcache.extraction.decoding.jpeg import jpeg_decoder
from featcache.extraction.sources.decode import jpegs_decoded_by
from featcache.store.errors import FeatcacheError

AHEAD = 2
"""Batches for each worker that are under way or wait for the forward pass."""
_POLL_S = 1.0
"""Usually a closed socket tells that a worker is gone. If another process holds a copy of it, asking does."""
_JOIN_S = 5.0

Load = Callable[[Rows], ImageBatch]


class WorkerError(FeatcacheError, RuntimeError):
    """A process that decodes images came to an end on its own."""


def decode_in_processes(
    load: Load, batches: Iterable[Rows], workers: int, gpu: torch.device | None = None
) -> Iterator[ImageBatch]:
    """Yield one `ImageBatch` for each of `batches`, in order, each decoded in one of several processes.

    `batches` is read in the calling thread, `AHEAD` batches for each worker before their images are yielded. All processes
    end with the iterator.

    Args:
        load: decodes a batch; picklable where processes are not forked.
        batches: the rows.
        workers: number of processes, at least 1.
        gpu: put images into pinned memory, from which this GPU copies while it computes.

    Raises:
        WorkerError: a process was killed, or none can be started.
    """
    with _Pool(load, workers, gpu) as pool:
        arrived: dict[int, ImageBatch] = {}
        upcoming, asked = iter(batches), 0

        def ask() -> None:
            nonlocal asked
            rows = next(upcoming, None)
            if rows is not None:
                pool.ask(asked, rows)
                asked += 1

        for _ in range(AHEAD * workers):
            ask()
        number = 0
        while number < asked:
            while number not in arrived:
                other, batch = pool.take()
                arrived[other] = batch
            ask()
            yield arrived.pop(number)
            number += 1


@dataclass(eq=False)
class _Worker:
    process: Process
    connection: "Connection"
    asked: "SimpleQueue[int]"
    """Numbers of the batches that are under way, in order."""


class _Pool:
    """Worker processes, and a thread that receives from all of them."""

    def __init__(self, load: Load, workers: int, gpu: torch.device | None) -> None:
        self._workers: list[_Worker] = []
        self._arrived: SimpleQueue[tuple[int, ImageBatch] | Exception] = SimpleQueue()
        self._closing = Event()
        self._receiver = Thread(target=self._receive_all, args=(gpu,), name="featcache-receiver", daemon=True)
        try:
            for _ in range(workers):
                with deferred_interrupt():
                    self._workers.append(_start(load))
        except OSError as error:
            self._end_processes()
            raise WorkerError(
                f"{workers} processes for decoding cannot be started ({error.strerror or error}); give fewer with --workers"
            ) from error
        except KeyboardInterrupt:
            self._end_processes()
            raise
        # Forking copies no thread, so this one comes last.
        self._receiver.start()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self._end_processes()
        for worker in self._workers:
            _hang_up(worker.connection)
        self._receiver.join()
        for worker in self._workers:
            worker.connection.close()

    def ask(self, number: int, rows: Rows) -> None:
        """Give a batch to the worker that has least to do."""
        worker = min(self._workers, key=lambda one: one.asked.qsize())
        worker.asked.put(number)
        with suppress(ConnectionError):  # it is gone, which `take` reports
            worker.connection.send(rows)

    def take(self) -> tuple[int, ImageBatch]:
        """Wait for the next batch of any worker.

        Raises:
            WorkerError: a worker was killed.
            Exception: whatever else decoding raised.
        """
        outcome = self._arrived.get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _receive_all(self, gpu: torch.device | None) -> None:
        """Receive batches until a worker ends."""
        if gpu is not None:
            torch.cuda.set_device(gpu)  # of this thread: memory is pinned for the GPU that is current
        workers = {worker.connection: worker for worker in self._workers}
        try:
            while not self._closing.is_set():
                ready = wait(list(workers), _POLL_S)
                for worker in () if ready else self._workers:
                    if not worker.process.is_alive():
                        raise _death_of(worker.process)
                for connection in ready:
                    worker = workers[connection]  # type: ignore[index]
                    try:
                        batch = receive(worker.connection, gpu is not None)
                    except (EOFError, ConnectionError):
                        raise _death_of(worker.process) from None
                    if isinstance(batch, Exception):
                        raise batch
                    self._arrived.put((worker.asked.get(), batch))
        except Exception as error:
            self._arrived.put(error)

    def _end_processes(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # nothing that a worker has is worth waiting for
        for worker in self._workers:
            worker.process.join(_JOIN_S)


def _start(load: Load) -> _Worker:
    ours, theirs = Pipe()
    try:
        process = Process(target=_work, args=(theirs, ours, load), name="featcache-decoder", daemon=True)
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        # While a copy is open here, or in a worker that is forked later, the end of this worker would not close the socket.
        theirs.close()
    return _Worker(process, ours, SimpleQueue())


def _hang_up(connection: "Connection") -> None:
    """Close a socket in both directions, which ends a read that waits in another thread; closing the descriptor does not."""
    with suppress(OSError), socket(fileno=os.dup(connection.fileno())) as same:
        same.shutdown(SHUT_RDWR)


def _death_of(process: Process) -> WorkerError:
    process.join(_JOIN_S)
    code = process.exitcode
    how = "it closed its socket"
    if code is not None:
        how = f"exit status {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
    return WorkerError(
        f"a process that decodes images came to an end ({how}), most often for want of memory; the same command resumes, "
        "with fewer processes if you give --workers"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _work(connection: "Connection", other_end: "Connection", load: Load) -> None:
    """Decode what the main process asks for, until it closes its end; the body of a worker process."""
    other_end.close()  # a forked process has a copy, and would never see that the main process is gone
    # Ctrl-C reaches the whole process group; the main process decides what happens, and workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    _silence_libraries()
    with suppress(EOFError, ConnectionError), jpegs_decoded_by(jpeg_decoder()):
        while True:
            rows = connection.recv()
            try:
                outcome: ImageBatch | Exception = load(rows)
            except Exception as error:
                outcome = _picklable(error)
            send(connection, outcome)


def _silence_libraries() -> None:
    """Leave standard error to Python: libjpeg writes a line there for every damaged file, which the run reports itself."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
