"""Opening the files of a cache that may come from anywhere: regular files only, and never through a link.

A link could lead out of the cache, a pipe is waited for for ever, and a device has no end.
"""

import hashlib
import os
from pathlib import Path
from stat import S_ISLNK, S_ISREG

from featcache.store.errors import CacheError

NOT_REGULAR = "not a regular file"
IS_LINK = "a link; a cache holds its files itself (`cp -rL` makes a copy without links)"

# Windows has only the last, without which it translates line ends.
REGULAR_FILE_FLAGS = sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)


def open_regular(path: str | Path) -> tuple[int, int]:
    """Open a file of a cache for reading; returns its descriptor and its size in bytes.

    Only the last part of the path is held to be no link: `refuse_link` is for the folders.

    Raises:
        FileNotFoundError: there is no such file.
        CacheError: it is a link, a folder, a pipe, a device or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | REGULAR_FILE_FLAGS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    except OSError as error:
        refuse_link(path)
        raise CacheError(f"{path}: cannot be read ({error.strerror})") from None
    status = os.fstat(descriptor)
    if not S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CacheError(f"{path}: {NOT_REGULAR}")
    return descriptor, status.st_size


def read_regular(path: str | Path, limit: int) -> bytes:
    """Read a whole file of a cache.

    Raises:
        FileNotFoundError: the file does not exist.
        CacheError: as for `open_regular`, or the file has more than `limit` bytes.
    """
    descriptor, size = open_regular(path)
    with open(descriptor, "rb", buffering=0) as file:
        if size > limit:
            raise CacheError(f"{path}: {size} bytes is more than such a file may have ({limit})")
        data = bytearray()
        # In pieces, since a file may grow after its size was read, and one read may return less than asked.
        while len(data) <= limit and (piece := file.read(limit + 1 - len(data))):
            data += piece
    if len(data) > limit:
        raise CacheError(f"{path}: it grows while it is read, beyond {limit} bytes")
    return bytes(data)


def has_content(path: str | Path, data: bytes) -> bool:
    """Return whether `path` is a regular file with exactly this content; read no more than its length."""
    try:
        return read_regular(path, len(data)) == data
    except (FileNotFoundError, CacheError):
        return False


def refuse_link(path: str | Path) -> None:
    """Refuse a link inside a cache. The folder of the cache itself may be one: people keep caches on several disks.

    Raises:
        CacheError: it is a link.
    """
    if os.path.islink(path):
        raise CacheError(f"{path}: {IS_LINK}")


def irregularity(path: str | Path) -> str | None:
    """Return why there is no regular file at `path`, without opening it; None if there is one."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if S_ISLNK(mode):
        return IS_LINK
    return None if S_ISREG(mode) else NOT_REGULAR


def sha256_regular(path: Path) -> str:
    """Return SHA-256 of a file of a cache as 64 hex digits; errors as in `open_regular`."""
    descriptor, _ = open_regular(path)
    with open(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
