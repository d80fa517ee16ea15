"""What the demo's scripts share: one error class, plain error reports, progress lines and atomic writes."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class DemoError(Exception):
    """A step cannot go on. The message is one line: what is wrong, where, and what to do."""


def run(main: Callable[[], None]) -> int:
    """Runs `main` and returns the exit status; an expected failure becomes one line on stderr.

    0: done. 1: the work failed (`DemoError`, a missing package, the file system). 130: interrupted.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        print(f"error: Python package {error.name} is missing: pip install {error.name}", file=sys.stderr)
        return 1
    except (DemoError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def step(what: str) -> Iterator[list[str]]:
    """Prints one progress line: `what` at the start; at the end the seconds and what was put into the list."""
    print(f"{what} ...", end=" ", flush=True)
    start = time.monotonic()
    notes: list[str] = []
    try:
        yield notes
    except BaseException:
        print("failed", flush=True)
        raise
    print(", ".join([f"done in {time.monotonic() - start:.1f} s", *notes]), flush=True)


def _partial(target: Path) -> Path:
    # Beside the target, since a rename is atomic only within one file system; with the process id,
    # so that two runs at the same time do not write into each other's file.
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write that appears as `target` only when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill that appears as `target` only when the block ends without an error.

    Where another process put `target` there in the meantime, that one stays and ours is dropped.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    shutil.rmtree(partial, ignore_errors=True)  # a killed process may have had the same id
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
