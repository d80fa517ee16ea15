"""Survive mapped files that are cut, or whose disk fails, while they are read.

Behind the new end of a file that someone cuts, and where a disk fails, reading a memory map ends the process with the
signal SIGBUS, without a word. Checking sizes before every read costs more than small reads do, and cannot see what
happens in their middle. So a handler of this signal puts memory full of NaN where the file was, and notes the loss. Code of ours
that reads mapped files asks for losses afterwards (`Region.check`), and raises. Other code that holds a mapped array reads NaN, and a line
on stderr says why: an exception cannot be raised from here into the middle of a sum.

The handler is a Python function, which is sound here because the signal is synchronous: it comes from one read instruction
of a copy or a sum, never from inside the allocator or the interpreter. Faults outside of registered regions go to whatever
handler was there before.
"""

import ctypes
import mmap
import os
import platform
import sys
import threading
from collections.abc import Callable

from featcache.store.errors import CacheError
from featcache.store.reading.libc import c_library, map_memory, move_map

_SIGBUS = 7
_SA_SIGINFO, _SA_RESTART = 0x4, 0x10000000
_SI_ADDR_OFFSET = 16  # of the address in siginfo_t, on every 64-bit Linux


class _Action(ctypes.Structure):
    """``struct sigaction`` of glibc and musl on 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Region:
    """A range of addresses where files are mapped. Guarded from its making until `release`.

    Args:
        address: of the first byte; a multiple of the page size.
        size: in bytes.
        piece_bytes: size of one mapped file, all of which is given up where a part of it is lost; whole pages.
        fill: two or four bytes that are NaN in the stored type, repeated over what is lost.
        name_of: path of the file that is mapped at a piece, by its number.
    """

    def __init__(
        self, address: int, size: int, piece_bytes: int, fill: bytes, name_of: Callable[[int], str]
    ) -> None:
        self.address = address
        self.size = size
        self.piece_bytes = piece_bytes
        self._fill = fill
        self._name_of = name_of
        self._lost: dict[int, None] = {}
        self._checked_reads = threading.local()
        _regions[address] = self

    def release(self) -> None:
        """Guard the range no longer: it is about to be unmapped."""
        _regions.pop(self.address, None)

    def __enter__(self) -> None:
        """Begin reads of this thread that `check` is called after."""
        self._checked_reads.active = True

    def __exit__(self, *error: object) -> None:
        self._checked_reads.active = False

    @property
    def lost(self) -> bool:
        """Whether a file was lost; the range holds NaN in its place from then on."""
        return bool(self._lost)

    def check(self) -> None:
        """Refuse what was read if a file was lost, now or earlier.

        Raises:
            CacheError: names the file.
        """
        if self.lost:
            raise CacheError(self._message(next(iter(self._lost))))

    def lose(self, address: int) -> None:
        """Replace the file that is mapped at `address` by NaN, and note it. Called by the handler."""
        piece = (address - self.address) // self.piece_bytes
        # Filled before it is moved there in one step, so that no other thread sees zeros. Shared memory, since
        # `LayerMaps.drop_pages` would turn private memory into zeros.
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        new = map_memory(None, self.piece_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags)
        ctypes.memmove(new, self._fill * (self.piece_bytes // len(self._fill)), self.piece_bytes)
        self._lost[piece] = None
        move_map(new, self.piece_bytes, self.address + piece * self.piece_bytes)
        if not getattr(self._checked_reads, "active", False):
            os.write(2, f"featcache: {self._message(piece)}\n".encode(errors="replace"))

    def _message(self, piece: int) -> str:
        return (
            f"{self._name_of(piece)}: was cut, or its disk failed, while it was read; its values are not valid "
            "(`featcache verify` says what is damaged)"
        )


_regions: dict[int, Region] = {}
_previous = _Action()
_handed_over = False


def supported() -> bool:
    """Whether maps can be guarded on this system: on 64-bit Linux."""
    return sys.platform == "linux" and sys.maxsize > 2**32 and platform.machine() in ("x86_64", "aarch64")


def install() -> None:
    """Handle SIGBUS. Called before every gather, since others (faulthandler, torch in its workers) may put a handler over ours.

    Takes about a microsecond where the handler is there already.
    """
    global _handed_over
    c_library().sigaction(_SIGBUS, None, _current_reference)
    if _current.handler == _handler_address:
        return
    ctypes.memmove(ctypes.byref(_previous), _current_reference, ctypes.sizeof(_Action))
    _handed_over = False
    ours = _Action(_handler_address, flags=_SA_SIGINFO | _SA_RESTART)
    c_library().sigaction(_SIGBUS, ctypes.byref(ours), None)


def _handle(signal: int, info: int, context: int) -> None:
    global _handed_over
    try:
        address = ctypes.c_void_p.from_address(info + _SI_ADDR_OFFSET).value or 0
        for region in tuple(_regions.values()):
            if region.address <= address < region.address + region.size:
                region.lose(address)
                return
        # Not ours: the read is tried again, and fails into the hands of the handler before. If that one gives it back, because
        # it was put over ours, the system's default ends the process.
        c_library().sigaction(_SIGBUS, ctypes.byref(_Action() if _handed_over else _previous), None)
        _handed_over = True
    except BaseException:  # or the same read would fail for ever
        c_library().sigaction(_SIGBUS, ctypes.byref(_Action()), None)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_handle)
_handler_address = ctypes.cast(_handler, ctypes.c_void_p).value
_current = _Action()
_current_reference = ctypes.byref(_current)
