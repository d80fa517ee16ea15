"""Whether what is to be fetched fits on the disk."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from featcache.store.errors import CacheError
from featcache.store.manifest import FileRecord
from featcache.store.transfer.receive import RECEIVING


def require_room(directory: Path, files: Mapping[str, FileRecord]) -> None:
    """Refuse to begin what cannot be finished for want of disk space.

    Raises:
        CacheError: there is too little.
    """
    begun = (directory / f"{path}{RECEIVING}" for path in files)
    needed = sum(record.bytes for record in files.values())
    needed -= sum(path.stat().st_size for path in begun if path.is_file())
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise CacheError(
            f"not enough disk space: {needed / 1e6:,.1f} MB are to be fetched, {free / 1e6:,.1f} MB are free at {directory}; "
            "make room, pull less (--layers, --split), or give another --root. Nothing was fetched"
        )
