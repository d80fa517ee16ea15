"""Survive mapped files that are truncated, or whose disk fails, during a read.

Reading a memory map behind the new end of a truncated file, or on a failing disk, ends the process with the signal SIGBUS
and no message. A size check before every read costs more than a small read, and cannot see a change during the read. So a
handler of this signal replaces the lost file by memory full of NaN, and records the loss. Our code that reads mapped files
checks for losses afterwards (`Region.check`), and raises. Other code that holds a mapped array reads NaN, and a line on
stderr gives the reason: a handler cannot raise an exception into the middle of a sum.

The handler is a Python function, which is sound because the signal is synchronous: it comes from one read instruction of a
copy or a sum, never from inside the allocator or the interpreter. Faults outside of registered regions go to the previous
handler.
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
_SI_ADDR_OFFSET = 16  # offset of the address in siginfo_t, on every 64-bit Linux


class _Action(ctypes.Structure):
    """``struct sigaction`` of glibc and musl on 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_byte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Region:
    """A range of addresses where files are mapped, guarded from its creation until `release`.

    Args:
        address: address of the first byte; a multiple of the page size.
        size: size in bytes.
        piece_bytes: size of one mapped file in bytes, whole pages; a file with a lost part is given up as a whole.
        fill: two or four bytes that are NaN in the stored type, repeated over a lost file.
        name_of: returns the path of the file that is mapped at a piece, by the number of the piece.
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
        """Stop guarding the range, which is about to be unmapped."""
        _regions.pop(self.address, None)

    def __enter__(self) -> None:
        """Begin reads of this thread; call `check` after them."""
        self._checked_reads.active = True

    def __exit__(self, *error: object) -> None:
        self._checked_reads.active = False

    @property
    def lost(self) -> bool:
        """True once a file was lost; from then on the range holds NaN in its place."""
        return bool(self._lost)

    def check(self) -> None:
        """Raise if a file was lost, during this read or earlier.

        Raises:
            CacheError: names the file.
        """
        if self.lost:
            raise self.error(next(iter(self._lost)))

    def error(self, piece: int) -> CacheError:
        """Return the error that names the file mapped at a piece."""
        return CacheError(self._message(piece))

    def lose(self, address: int) -> None:
        """Replace the file that is mapped at `address` by NaN, and record the loss. Called by the handler."""
        piece = (address - self.address) // self.piece_bytes
        # The memory is filled first and then moved in one step, so that no other thread sees zeros. It is shared, since
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
    """Return whether this system can guard maps; only 64-bit Linux can."""
    return sys.platform == "linux" and sys.maxsize > 2**32 and platform.machine() in ("x86_64", "aarch64")


def install() -> None:
    """Install the SIGBUS handler. Called before every gather, since faulthandler or torch's workers may replace the handler.

    Takes about a microsecond if the handler is already installed.
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
        # Outside of our regions: the read is repeated, and fails into the previous handler. If that one was installed over ours and
        # calls ours again, the system's default ends the process.
        c_library().sigaction(_SIGBUS, ctypes.byref(_Action() if _handed_over else _previous), None)
        _handed_over = True
    except BaseException:  # otherwise the same read would fail forever
        c_library().sigaction(_SIGBUS, ctypes.byref(_Action()), None)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_handle)
_handler_address = ctypes.cast(_handler, ctypes.c_void_p).value
_current = _Action()
_current_reference = ctypes.byref(_current)
