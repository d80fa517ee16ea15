"""Processes in which one operation on the disk fails, or that end or stop at one.

A preloaded library does it (`faults.c`), so that what runs is the real thing, down to the calls of the C library.
"""

import errno
import json
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from support.processes import environment, start_module

CREATE, WRITE, SYNC, RENAME, REMOVE, READ = 1, 2, 4, 8, 16, 32
CHANGES = CREATE | WRITE | SYNC | RENAME
KILL, STOP = -1, -2
"""Actions besides error numbers: end the process (in the middle of a write), or stop it until it is continued."""
LIMIT_S = 60.0


@dataclass(frozen=True)
class Fault:
    """What happens to one of the operations below `folder`; at 0 they are only counted."""

    folder: Path
    at: int = 0
    action: int = errno.EIO
    kinds: int = CHANGES
    lasting: bool = False
    """Whether all later operations that change the disk fail too."""

    def environment(self, library: Path) -> dict[str, str]:
        """What the environment of a process needs for the fault to happen in it."""
        values = {"folder": self.folder, "at": self.at, "action": self.action, "kinds": self.kinds}
        values["lasting"] = int(self.lasting)
        names = {f"FEATCACHE_FAULT_{name.upper()}": str(value) for name, value in values.items()}
        return {**names, "LD_PRELOAD": str(library)}


@dataclass(frozen=True)
class End:
    """How a process ended."""

    status: int
    """Exit status, or minus the signal, as `subprocess` says it."""
    out: str
    err: str
    operations: int
    """Operations counted; 0 for a process that was killed."""


def build_library(folder: Path) -> Path:
    """Compile the library; skips where that is not possible."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("making operations fail needs Linux and a C compiler")
    library = folder / "faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source, "-ldl"], check=True
    )
    return library


class FaultyProcesses:
    """Runs command lines with faults in them, each in a process of its own; use as a context manager.

    The processes are forked off one that has imported everything, because hundreds of them are needed.
    """

    def __init__(self, library: Path, scratch: Path) -> None:
        self._scratch = scratch
        env = {**environment(), "LD_PRELOAD": str(library)}
        self._server = start_module("support.fault_server", stdin=subprocess.PIPE, stderr=None, env=env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.terminate()
        self._server.communicate()

    def run(
        self, arguments: Sequence[object], fault: Fault, while_stopped: Callable[[], object] = lambda: None
    ) -> End:
        """Run one command line of featcache, or of `support.commands`, to its end.

        `while_stopped` is called when the process has stopped itself, or has ended.
        """
        operations = self._scratch / "operations"
        operations.unlink(missing_ok=True)
        numbers = [fault.kinds, fault.at, fault.action, int(fault.lasting)]
        request = {"arguments": [str(argument) for argument in arguments], "scratch": str(self._scratch)}
        self._ask({**request, "fault": [str(fault.folder), *numbers]})
        while_stopped()
        status = self._ask({"wait": True})
        counted = int(operations.read_text()) if operations.exists() else 0
        out, err = ((self._scratch / name).read_text() for name in ("out", "err"))
        return End(status, out, err, counted)

    def _ask(self, request: dict[str, object]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        ready, _, _ = select.select([self._server.stdout], [], [], LIMIT_S)
        assert ready, f"still running after {LIMIT_S:.0f} s: {request}"
        return int(self._server.stdout.readline())
