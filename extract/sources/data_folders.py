"""Folders of datasets on this machine: local copies by name, and files made or fetched while reading one."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import IO

from featcache.store.errors import DatasetError
from featcache.store.files import atomic_file
from featcache.store.home import expanded, user_cache
from featcache.store.progress import Reporter

DATA_VARIABLE = "FEATCACHE_DATA"
UNPACKED_BYTES = 2**30
"""Bytes that every packed file may unpack to."""
MAX_UNPACKED_RATIO = 200
"""Beyond that, largest ratio of unpacked to packed bytes; images reach 3, and deflate 1032."""


def data_folder() -> Path:
    """Return ``$FEATCACHE_DATA``, else ``featcache-data`` in the user's cache folder."""
    named = os.environ.get(DATA_VARIABLE)
    return expanded(named) if named else user_cache() / "featcache-data"


def derived_path(purpose: str, source: str, name: str) -> Path:
    """Return the path for data derived from `source`: below a hidden folder, so that it is never taken for a dataset."""
    return data_folder() / f".{purpose}" / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}-{name}"


def unpack_once(path: Path, reporter: Reporter) -> Path:
    """Return the file itself, or the content of a ``.gz``, unpacked once and kept, since rows are read at their offset.

    Raises:
        DatasetError: the file is damaged, or unpacks to an unlikely size.
    """
    if path.suffix != ".gz":
        return path
    state = path.stat()
    target = derived_path("unpacked", f"{path.resolve()} {state.st_size} {state.st_mtime_ns}", path.stem)
    if target.is_file():
        return target
    reporter.message(f"unpacking {path} to {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            atomic_file(target, durable=False) as partial,
            gzip.open(path) as packed,
            partial.open("wb") as out,
        ):
            _copy(packed, out, path, max(UNPACKED_BYTES, MAX_UNPACKED_RATIO * state.st_size))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is damaged ({error}); download or copy it again") from None
    return target


def _copy(packed: gzip.GzipFile, out: IO[bytes], path: Path, most: int) -> None:
    done = 0
    while part := packed.read(2**20):
        done += len(part)
        if done > most:
            raise DatasetError(
                f"{path} unpacks to more than {most} bytes, {MAX_UNPACKED_RATIO} times its size; unpack it yourself if it is "
                "what it should be"
            )
        out.write(part)
