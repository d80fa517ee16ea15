"""Bounds on the silence of a remote, and a way to leave a client that would wait longer.

Every wait is bounded: a silent server is given up after `GIVE_UP_S`, whichever answer is missing, and a server that sends
only a byte now and then counts as silent. A transfer that makes progress may take any time.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

from featcache.store.errors import RemoteError
from featcache.store.network.concurrency import TransientError, check_stop, share_stop

CONNECT_S = 10.0
"""Seconds to wait for a connection."""
SILENCE_S = 15.0
"""Seconds without an answer, or with hardly any bytes, after which a request is given up; `GIVE_UP_S` has room for two."""
LISTING_S = 120.0
"""Seconds for one listing, all pages together."""
MAX_LISTED = 10**6
"""Most files in one listing; a cache of ImageNet has about ten thousand."""
SLOWEST_BYTES = 1024
"""Bytes in `SILENCE_S` below which a transfer counts as silent."""

T = TypeVar("T")


def run_with_timeout(work: Callable[[], T], seconds: float, where: str) -> T:
    """Run `work` on a separate thread, and abandon the thread after `seconds`.

    Args:
        work: a call of a client; no client bounds all of its waits (name lookups, slowly arriving headers).
        seconds: longest duration.
        where: name of the remote and the file in the error.

    Raises:
        TransientError: `work` takes longer.
        Exception: any error of `work`.
    """
    results: Queue[tuple[T | None, BaseException | None]] = Queue()
    stopping = share_stop()

    def deliver() -> None:
        try:
            with stopping():
                results.put((work(), None))
        except BaseException as error:
            results.put((None, error))

    Thread(target=deliver, name="featcache-request", daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except Empty:
        raise TransientError(f"{where}: no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # None only if `work` returned it


class MinimumSpeed:
    """Bounds the speed of a transfer from below, for clients that bound each single wait."""

    def __init__(self, where: str) -> None:
        self._where, self._bytes, self._since = where, 0, time.monotonic()

    def count(self, num_bytes: int) -> None:
        """Count bytes that have arrived.

        Raises:
            TransientError: fewer than `SLOWEST_BYTES` came in `SILENCE_S`.
        """
        self._bytes += num_bytes
        now = time.monotonic()
        if now - self._since < SILENCE_S:
            return
        if self._bytes < SLOWEST_BYTES:
            raise TransientError(f"{self._where}: too little arrived in {SILENCE_S:.0f} s")
        self._bytes, self._since = 0, now


class ByteMonitor:
    """The bytes of one transfer, counted for the thread that watches it."""

    def __init__(self) -> None:
        self.bytes = 0
        self.silent = False
        """True if the transfer was cut because it was too slow."""


@contextmanager
def watch_transfer(cut: Callable[[], object]) -> Iterator[ByteMonitor]:
    """Call `cut`, which wakes the thread that waits for data, when fewer than `SLOWEST_BYTES` arrive in `SILENCE_S`."""
    monitor, done = ByteMonitor(), Event()

    def watch() -> None:
        before = 0
        while not done.wait(SILENCE_S):
            if monitor.bytes - before < SLOWEST_BYTES:
                monitor.silent = True
                cut()
                return
            before = monitor.bytes

    Thread(target=watch, name="featcache-watch", daemon=True).start()
    try:
        yield monitor
    finally:
        done.set()


class ListingGuard:
    """Bounds a listing by its number of files, and by time even if its pages are empty."""

    def __init__(self, where: str) -> None:
        self._where, self._files, self._until = where, 0, time.monotonic() + LISTING_S

    def count(self, files: int = 1) -> None:
        """Count files, or pages without any.

        Raises:
            RemoteError: the listing has too many files, or takes too long.
        """
        check_stop()
        self._files += files
        if self._files > MAX_LISTED:
            raise RemoteError(
                f"{self._where}: the listing has more than {MAX_LISTED:,} files, which no remote of caches has"
            )
        if time.monotonic() > self._until:
            raise self.endless_listing()

    def endless_listing(self) -> RemoteError:
        """Return the error for an endless listing."""
        return RemoteError(
            f"{self._where}: the listing did not end within {LISTING_S:.0f} s; is it the right address?"
        )

    def bounded(self, work: Callable[[], T]) -> T:
        """Run `work`, which lists files and calls `count`; errors as for `count`."""
        try:
            return run_with_timeout(work, LISTING_S, self._where)
        except TransientError as error:
            if str(error).endswith(f"no answer within {LISTING_S:.0f} s"):
                raise self.endless_listing() from None
            raise
