"""Files and folders that appear whole or not at all: written under a temporary name, synced, renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.store.errors import RequestError
from featcache.store.files import PARTIAL_SUFFIX, sync_directory


def check_target(path: Path) -> None:
    """Refuse a target that exists, or that has no folder to lie in.

    Raises:
        RequestError: nothing was done.
    """
    if path.exists() or path.is_symlink():
        raise RequestError(f"{path} exists already; name another with --out, or remove it")
    if not path.absolute().parent.is_dir():
        raise RequestError(
            f"folder {path.absolute().parent} does not exist; make it, or name another with --out"
        )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the temporary name to write to; leaving without an error makes it `path`."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        yield partial
        sync_file(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.absolute().parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; leaving without an error makes it `path`."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
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


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power loss."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
