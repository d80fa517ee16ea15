"""Disk usage of a file or folder, and the time of its last change."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featcache.store.writing.claim_files import SUFFIX


@dataclass(frozen=True)
class Usage:
    """Disk usage of a file or folder."""

    num_bytes: int
    num_files: int
    modified: float
    """Seconds since the epoch of the newest change to a file inside. Folders and claims count only if there is nothing
    else, since checking for a live process touches them."""


def usage(path: Path) -> Usage:
    """Measure a file or a folder; a link counts as itself."""
    num_bytes, num_files = 0, 0
    times: list[float] = []
    others = [path.lstat().st_mtime]
    for item in _walk(path):
        try:
            status = item.lstat()
        except OSError:
            continue  # a writer has just renamed it, or it may not be read
        if stat.S_ISDIR(status.st_mode):
            continue
        (others if item.name.endswith(SUFFIX) else times).append(status.st_mtime)
        num_bytes, num_files = num_bytes + status.st_size, num_files + 1
    return Usage(num_bytes, num_files, max(times or others))


def _walk(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for folder, folders, files in os.walk(path):
            yield from (Path(folder, name) for name in (*folders, *files))
    else:
        yield path
