"""How long a remote may be silent, and how to leave a client that would wait longer.

Every wait is bounded: a silent server is found out in `GIVE_UP_S`, whichever of its answers it withholds, and one that
sends a byte now and then counts as silent. A transfer that moves may take as long as it takes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

from featcache.store.errors import RemoteError
from featcache.store.transfer.flight import TransientError, check_stop, same_stop

CONNECT_S = 10.0
"""Seconds for a connection to be made."""
SILENCE_S = 15.0
"""Seconds without an answer, or with next to nothing of one, after which a request is given up. Twice in `GIVE_UP_S`."""
LISTING_S = 120.0
"""Seconds for one listing, however many pages it has."""
MAX_LISTED = 10**6
"""Files in one listing; a cache of ImageNet has some ten thousand."""
SLOWEST_BYTES = 1024
"""Bytes in `SILENCE_S` below which a transfer counts as silent."""

T = TypeVar("T")


def bounded(work: Callable[[], T], seconds: float, where: str) -> T:
    """Do `work` on a thread of its own and wait so many seconds at most; the thread is then left to itself.

    Args:
        work: what a client does; no client bounds all of its waits (names that are looked up, headers that drip).
        seconds: how long it may take.
        where: names the remote and the file.

    Raises:
        TransientError: it takes longer.
        Exception: what `work` raises.
    """
    answers: Queue[tuple[T | None, BaseException | None]] = Queue()
    stopping = same_stop()

    def answer() -> None:
        try:
            with stopping():
                answers.put((work(), None))
        except BaseException as error:
            answers.put((None, error))

    Thread(target=answer, name="featcache-request", daemon=True).start()
    try:
        found, error = answers.get(timeout=seconds)
    except Empty:
        raise TransientError(f"{where}: no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return found  # type: ignore[return-value]  # None only where that is the answer


class Pace:
    """Bounds a transfer from below, where the client bounds each of its waits itself."""

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


class Pulse:
    """The bytes of one transfer, for the thread that watches it."""

    def __init__(self) -> None:
        self.bytes = 0
        self.silent = False
        """Whether the transfer was cut because too little moved."""


@contextmanager
def watched(cut: Callable[[], object]) -> Iterator[Pulse]:
    """Call `cut`, which wakes whoever waits for data, when fewer than `SLOWEST_BYTES` arrive in `SILENCE_S`."""
    pulse, done = Pulse(), Event()

    def watch() -> None:
        before = 0
        while not done.wait(SILENCE_S):
            if pulse.bytes - before < SLOWEST_BYTES:
                pulse.silent = True
                cut()
                return
            before = pulse.bytes

    Thread(target=watch, name="featcache-watch", daemon=True).start()
    try:
        yield pulse
    finally:
        done.set()


class ListingGuard:
    """Bounds a listing: in files, and in time however few files its pages hold."""

    def __init__(self, where: str) -> None:
        self._where, self._files, self._until = where, 0, time.monotonic() + LISTING_S

    def count(self, files: int = 1) -> None:
        """Count files, or pages without any.

        Raises:
            RemoteError: it is too many, or takes too long.
        """
        check_stop()
        self._files += files
        if self._files > MAX_LISTED:
            raise RemoteError(
                f"{self._where}: the listing has more than {MAX_LISTED:,} files, which no remote of caches has"
            )
        if time.monotonic() > self._until:
            raise self.too_long()

    def too_long(self) -> RemoteError:
        """The error of a listing that does not end."""
        return RemoteError(
            f"{self._where}: the listing did not end within {LISTING_S:.0f} s; is it the right address?"
        )

    def bounded(self, work: Callable[[], T]) -> T:
        """Do `work`, which lists and counts as it goes; errors as for `count`."""
        try:
            return bounded(work, LISTING_S, self._where)
        except TransientError as error:
            if str(error).endswith(f"no answer within {LISTING_S:.0f} s"):
                raise self.too_long() from None
            raise
