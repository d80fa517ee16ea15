"""Where datasets lie on this machine: local copies by name, and what was made or fetched on the way to reading one."""

import gzip
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.store.errors import DatasetError
from featcache.store.home import expanded, user_cache
from featcache.store.progress import Reporter

DATA_VARIABLE = "FEATCACHE_DATA"


def data_folder() -> Path:
    """``$FEATCACHE_DATA``, else ``featcache-data`` in the user's cache folder."""
    named = os.environ.get(DATA_VARIABLE)
    return expanded(named) if named else user_cache() / "featcache-data"


def derived(kind: str, source: str, name: str) -> Path:
    """Where what is made of `source` is kept: below a hidden folder, so that it is never taken for a dataset."""
    return data_folder() / f".{kind}" / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}-{name}"


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write to; it becomes `target` at the end, and goes if an error ends it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A token, not the process id: containers that share the folder have the same ones.
    partial = target.with_name(f"{target.name}.{secrets.token_hex(6)}.partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def unpacked(path: Path, reporter: Reporter) -> Path:
    """The file itself, or what a ``.gz`` holds, unpacked once and kept: what is read by place cannot stay packed.

    Raises:
        DatasetError: it is damaged.
    """
    if path.suffix != ".gz":
        return path
    state = path.stat()
    target = derived("unpacked", f"{path.resolve()} {state.st_size} {state.st_mtime_ns}", path.stem)
    if target.is_file():
        return target
    reporter.message(f"unpacking {path} to {target}")
    try:
        with whole_file(target) as partial, gzip.open(path) as packed, partial.open("wb") as out:
            shutil.copyfileobj(packed, out, 2**20)
    except (gzip.BadGzipFile, EOFError) as error:
        raise DatasetError(f"{path} is damaged ({error}); download or copy it again") from None
    return target
