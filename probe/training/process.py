"""Settings of the whole process that make training on a CPU several times faster. Programs make them, libraries should not."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featcache.probing.heads import scratch

# Of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def flush_denormals() -> None:
    """Let the CPU treat denormal numbers as 0, which it otherwise computes with many times slower.

    Attention weights and Adam's moments run into denormals. The setting belongs to a thread and is inherited by the
    threads it starts, so entry points call this first: before any torch operation has started the thread pool.
    """
    torch.set_flush_denormal(True)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor, instead of giving it back to the system.

    Fresh pages are cleared by the system as they are first touched, which takes longer than most operations of a small head.
    Does nothing where there is no glibc.
    """
    _call_glibc("mallopt", _MMAP_MAX, 0)
    _call_glibc("mallopt", _TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give the system what was kept: between two heads, whose tokens may differ in size."""
    scratch.release()
    _call_glibc("malloc_trim", 0)


def _call_glibc(function: str, *arguments: int) -> None:
    try:
        getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)
    except (OSError, AttributeError):
        return  # another C library


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use `number` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
