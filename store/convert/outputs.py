"""Files and folders that appear whole or not at all: written under a temporary name, synced, renamed."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.store.errors import FeatcacheError, RequestError
from featcache.store.files import PARTIAL_SUFFIX, partial_path, sync_directory, sync_file


def check_target(path: Path, num_bytes: int) -> None:
    """Refuse a target that exists, that has no folder to lie in, or for which the disk has no room.

    Raises:
        RequestError: it cannot be made; nothing was done.
        FeatcacheError: there is no room for `num_bytes`.
    """
    if path.exists() or path.is_symlink():
        raise RequestError(f"{path} exists already; name another with --out, or remove it")
    if not path.absolute().parent.is_dir():
        raise RequestError(
            f"folder {path.absolute().parent} does not exist; make it, or name another with --out"
        )
    free = shutil.disk_usage(path.absolute().parent).free
    if free < num_bytes:
        raise FeatcacheError(
            f"{path} needs {num_bytes / 1e6:.1f} MB, its disk has {free / 1e6:.1f} MB; make room or name another with --out"
        )


def stale_outputs(path: Path) -> list[Path]:
    """Return the partial outputs for `path` that other runs began: stale files, unless such a run is still alive."""
    name = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{12}}{re.escape(PARTIAL_SUFFIX)}")
    return sorted(output for output in path.absolute().parent.iterdir() if name.fullmatch(output.name))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; leaving without an error makes it `path`."""
    partial = partial_path(path)
    partial.mkdir()
    try:
        yield partial
        for folder, _, files in os.walk(partial, topdown=False):
            for name in files:
                sync_file(Path(folder, name))
            sync_directory(Path(folder))
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_directory(path.absolute().parent)


@contextmanager
def with_target(path: Path) -> Iterator[None]:
    """Turn an error of the file system while `path` is written into one line; errors that name a file stay.

    Raises:
        FeatcacheError: the disk is full, or the like.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FeatcacheError) or error.filename or not error.errno:
            raise
        raise FeatcacheError(
            f"{path} cannot be written ({os.strerror(error.errno)}); nothing of it is left, make room or name another with --out"
        ) from error
