"""Processors and memory of the machine, and work on threads (numpy and reads release the interpreter's lock)."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

MAX_FILES = 4096

T = TypeVar("T")


def usable_cpus() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes that files can take in memory before the system needs them for something else, about."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # another system than Linux
        return 2**32


def allow_open_files() -> None:
    """Raise the soft limit of open files to `MAX_FILES`, or as far as the system allows; a higher limit stays.

    A cache has a file for each layer, workers hand over their images through more of them, and macOS allows 256 by default.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def run_all(function: Callable[[T], object], jobs: Sequence[T], threads: int) -> None:
    """Call `function` on every job, on at most `threads` threads; the first error is raised."""
    if threads == 1 or len(jobs) <= 1:
        for job in jobs:
            function(job)
        return
    # Takes milliseconds to import, and `featcache ls` does not need it.
    from concurrent.futures import ThreadPoolExecutor

    # Made anew every time, which takes a tenth of a millisecond: a pool that is kept would be dead after a fork.
    with ThreadPoolExecutor(min(threads, len(jobs)) - 1) as pool:
        others = [pool.submit(function, job) for job in jobs[1:]]
        function(jobs[0])
        for other in others:
            other.result()


def comes_from_disk(read: Callable[[], object]) -> bool:
    """Call `read`, and say whether its data came from disk: the system counts page faults and blocks of a thread."""
    try:
        import resource
    except ImportError:  # Windows does not count
        read()
        return False
    who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    before = resource.getrusage(who)
    read()
    after = resource.getrusage(who)
    return after.ru_majflt > before.ru_majflt or after.ru_inblock > before.ru_inblock
