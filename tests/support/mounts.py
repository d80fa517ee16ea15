"""Real file systems under a test's own folder; unmounted at the end, whatever happens."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(point: Path, *arguments: object) -> Iterator[Path]:
    """Mount at `point`, which is made: ``mount *arguments point``. Skips where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    point.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *map(str, arguments), point], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield point
    finally:
        unmount(point)


def unmount(point: Path) -> None:
    """Take a file system away from `point`, also from under those who use it."""
    while os.path.ismount(point) or _is_bound(point):
        subprocess.run(["umount", "--lazy", point], check=True)


def _is_bound(point: Path) -> bool:
    # A folder bound to another place of the same disk does not look like a mount point to `os.path.ismount`.
    table = Path("/proc/self/mounts").read_text().splitlines()
    return str(point) in {line.split()[1] for line in table}
