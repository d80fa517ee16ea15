"""What a file or a folder takes on disk, and when it was touched last."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a file or folder takes."""

    num_bytes: int
    num_files: int
    modified: float
    """Seconds since the epoch of the newest change inside."""


def usage(path: Path) -> Usage:
    """Measure a file or a folder; a link counts as itself."""
    num_bytes, num_files, modified = 0, 0, path.lstat().st_mtime
    for item in _walk(path):
        try:
            found = item.lstat()
        except FileNotFoundError:
            continue  # a writer has just renamed it
        modified = max(modified, found.st_mtime)
        if not stat.S_ISDIR(found.st_mode):
            num_bytes, num_files = num_bytes + found.st_size, num_files + 1
    return Usage(num_bytes, num_files, modified)


def _walk(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for folder, folders, files in os.walk(path):
            yield from (Path(folder, name) for name in (*folders, *files))
    else:
        yield path
