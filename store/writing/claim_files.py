"""Read claim files: the owner that a claim names, and whether that process is alive.

Nothing here writes. `claims` takes and holds claims.
"""

import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, parse_json, try_lock
from featcache.store.regular_files import REGULAR_FILE_FLAGS, read_regular

SUFFIX = ".claim"
RECORD_BYTES = 256
STALE_S = 60.0
"""Seconds without a touch after which a claim of another machine is taken over."""
DAY_S = 86_400.0
"""Seconds that a clock may be wrong."""


def live_claims(folder: Path, now: float | None = None) -> list[str]:
    """Return the names of the claims in `folder` that a live process holds. Nothing is written, so no file becomes newer.

    Args:
        folder: folder of the claims; a missing folder has none.
        now: seconds since the epoch by the clock of the file system; this machine's clock if not given.
    """
    now = time.time() if now is None else now
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX) and name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name.removesuffix(SUFFIX) for name in names if _is_live(folder / name, now)]


def _is_live(path: Path, now: float) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return False  # not a claim of ours
    fresh = -DAY_S < now - status.st_mtime < STALE_S
    try:
        descriptor = os.open(path, os.O_RDONLY | REGULAR_FILE_FLAGS)
    except OSError:
        return fresh
    try:
        locked = try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)
    if locked is False:
        return True
    owner = read_owner(path)
    return fresh and not (locked and owner is not None and owner.get("machine") == machine())


@cache
def machine() -> str:
    """Return a name for the running kernel; among its processes, file locks show who is alive."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def open_claim(path: Path) -> int | None:
    """Open a claim for writing, or only for reading if another user owns it; None if neither is allowed."""
    for mode in (os.O_RDWR, os.O_RDONLY):
        with suppress(OSError):
            return os.open(path, mode | REGULAR_FILE_FLAGS)
    return None


def may_write(descriptor: int) -> bool:
    """Return whether an open claim was opened for writing."""
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def read_owner(path: Path) -> JsonObject | None:
    """Return the owner that a claim names; None if there is no claim, or its content is not ours."""
    try:
        return parse_json(read_regular(path, RECORD_BYTES), str(path))
    except (FileNotFoundError, CacheError):
        return None
