"""Ctrl-C while a process is forked."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back until the block is through.

    Python runs hooks around a fork, which hold locks of other modules (that of logging, for one). An exception in such a hook is
    swallowed, and its lock stays held: the interruption is lost, and the run waits forever.

    Raises:
        KeyboardInterrupt: after the block, if Ctrl-C came in it.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone runs handlers
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived and callable(before):
        before(*arrived[0])
