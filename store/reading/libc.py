"""The C library's memory maps: Python's `mmap` cannot choose an address."""

import ctypes
import os
from functools import cache
from typing import Any

MAP_FIXED = 0x10  # the same on Linux, macOS and the BSDs; the mmap module lacks it
_FAILED = ctypes.c_void_p(-1).value


@cache
def c_library() -> Any:
    """Return the C library, with the types of the functions called here."""
    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.argtypes = [pointer, size, number, number, number, ctypes.c_long]
    library.mmap.restype = pointer
    library.munmap.argtypes = [pointer, size]
    library.madvise.argtypes = [pointer, size, number]
    library.mremap.argtypes = [pointer, size, size, number, pointer]
    library.mremap.restype = pointer
    library.sigaction.argtypes = [number, pointer, pointer]
    return library


def map_memory(address: int | None, size: int, protection: int, flags: int, descriptor: int = -1) -> int:
    """Map memory or a file, and return its address.

    Raises:
        OSError: the system refuses.
    """
    got = c_library().mmap(address, size, protection, flags, descriptor, 0)
    if got in (None, _FAILED):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {size} bytes: {os.strerror(code)}")
    return int(got)


def move_map(source: int, size: int, target: int) -> None:
    """Move mapped memory to another address in one step, replacing the mapping there. Linux only.

    Raises:
        OSError: the system refuses.
    """
    maymove_fixed = 0x3
    if c_library().mremap(source, size, size, maymove_fixed, target) in (None, _FAILED):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot move a map: {os.strerror(code)}")


def unmap(address: int, size: int) -> None:
    """Unmap a range of addresses."""
    c_library().munmap(address, size)


def advise(address: int, size: int, advice: int) -> None:
    """Tell the system how a range will be used: one of the ``MADV_`` constants of `mmap`."""
    c_library().madvise(address, size, advice)
