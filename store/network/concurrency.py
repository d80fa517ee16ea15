"""Many transfers at the same time, each tried again when it fails, all stopped together."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread, local
from typing import TypeVar

from featcache.store.errors import CacheError, RemoteError
from featcache.store.progress import Reporter, Update

PIECE_BYTES = 2**20
"""Size of the pieces in which files are sent and received."""
CONCURRENT_FILES = 8
"""Files that move at the same time."""

MB, KB = 10**6, 10**3
UPDATE_S = 0.1
TRIES = 6
"""Without any progress; a transfer that moves is never given up."""
GIVE_UP_S = 30.0
"""Seconds without any progress after which retries stop."""
FIRST_WAIT_S, MAX_WAIT_S = 0.2, 10.0
STOP_WAIT_S = 2.0
"""Seconds that stopping transfers are waited for; a thread that hangs longer is abandoned."""
_NEVER = Event()


class TransientError(RemoteError):
    """Something that may well work when it is tried again."""


class StoppedError(Exception):
    """Raised inside a transfer, because another one has failed or the user has had enough."""


_of_thread = local()
T = TypeVar("T")


def check_stop() -> None:
    """Leave a transfer that is to be stopped; called between pieces."""
    if _stop().is_set():
        raise StoppedError


def _stop() -> Event:
    """Return the event that stops what this thread does; none ever does outside of `run_concurrently`."""
    event: Event = getattr(_of_thread, "stop", _NEVER)
    return event


def share_stop() -> Callable[[], AbstractContextManager[None]]:
    """Return the context that a helper thread enters to be stopped together with this thread."""
    stop = _stop()

    @contextmanager
    def entered() -> Iterator[None]:
        _of_thread.stop = stop
        yield

    return entered


def back_off(attempt: int) -> None:
    """Wait before trying again, the longer the more often it has failed, and never at the same time as all others."""
    wait_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0)
    if _stop().wait(wait_s):
        raise StoppedError


class Attempts:
    """Counts how often, and for how long, something has failed without any progress."""

    def __init__(self) -> None:
        self.progress()

    def progress(self) -> None:
        """Reset the counts after progress."""
        self._failed, self._since = 0, time.monotonic()

    def failed(self, error: TransientError | None) -> bool:
        """Wait before the next try; return False if no try follows and there is nothing to raise.

        Raises:
            TransientError: `error` occurred too often; the message has the number of tries and a suggestion.
        """
        self._failed += 1
        seconds = time.monotonic() - self._since
        if self._failed < TRIES and seconds < GIVE_UP_S:
            back_off(self._failed)
            return True
        if error is None:
            return False
        times = "once" if self._failed == 1 else f"{self._failed} times"
        raise TransientError(
            f"{error} (tried {times} in {seconds:.0f} s; run the same command again when the remote answers)"
        ) from error


def retry(work: Callable[[], T]) -> T:
    """Do `work`, again where it fails for a reason that may pass."""
    attempts = Attempts()
    while True:
        try:
            return work()
        except TransientError as error:
            attempts.failed(error)


def run_concurrently(tasks: Sequence[Callable[[], None]], threads: int) -> None:
    """Run tasks, several at a time. What is wrong with one file does not keep the others back; anything else does.

    Raises:
        CacheError: the first file that is wrong; the message counts the others.
        Exception: whatever else went wrong first.
    """
    stop, todo, done = Event(), SimpleQueue[Callable[[], None]](), SimpleQueue[BaseException | None]()
    for task in tasks:
        todo.put(task)

    def work() -> None:
        _of_thread.stop = stop
        while not stop.is_set():
            try:
                task = todo.get_nowait()
            except Empty:
                return
            try:
                task()
                done.put(None)
            except BaseException as error:
                done.put(error)

    # Daemons, not a pool, which the interpreter would wait for: a connection that hangs must not hold up Ctrl-C.
    workers = [Thread(target=work, name="featcache-transfer", daemon=True) for _ in tasks[:threads]]
    for worker in workers:
        worker.start()
    file_errors: list[CacheError] = []
    try:
        for _ in tasks:
            error = done.get()
            if isinstance(error, CacheError):
                file_errors.append(error)
            elif error is not None:
                raise error
    finally:
        stop.set()
        deadline = time.monotonic() + STOP_WAIT_S
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
    if file_errors:
        raise type(file_errors[0])(
            f"{file_errors[0]}"
            + (f" (and {len(file_errors) - 1} more files)" if len(file_errors) > 1 else "")
        )


class ByteCounter:
    """Adds up what threads move and tells a reporter now and then."""

    def __init__(self, update: Update, total: int) -> None:
        self._update, self._total = update, total
        self._unit = MB if total >= 10 * MB else KB
        self._lock = Lock()
        self._shown = 0.0
        self.done = 0

    def __call__(self, num_bytes: int) -> None:
        """Count bytes that have moved; negative ones are to move again."""
        with self._lock:
            self.done += num_bytes
            now = time.monotonic()
            if now - self._shown < UPDATE_S:
                return
            self._shown = now
            self.show()

    def show(self) -> None:
        """Tell the reporter."""
        self._update(min(self.done, self._total) // self._unit, self._total // self._unit)


def transfer_with_progress(
    reporter: Reporter, title: str, total: int, work: Callable[[ByteCounter], None]
) -> int:
    """Do `work`, which counts its bytes, under a progress bar; returns the bytes moved by it.

    Args:
        reporter: shows the progress.
        title: what is going on.
        total: bytes in all.
        work: is given the counter.
    """
    with reporter.progress(title, "MB" if total >= 10 * MB else "kB") as update:
        counter = ByteCounter(update, total)
        counter.show()
        work(counter)
        counter.show()
    return counter.done
