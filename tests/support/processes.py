"""Processes of the tests' own, as real as the command line: what they do is in `support`."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """The environment of a process that imports from `support`."""
    path = filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def start_module(name: str, *arguments: object, **options: object) -> "subprocess.Popen[str]":
    """Start ``python -m name``, with its output and errors as pipes."""
    command = [sys.executable, "-W", "ignore", "-m", name, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, "env": environment(), **options}, text=True)


def start_writer(
    directory: Path, pause_s: float = 0.004, samples: Mapping[str, int] | None = None
) -> "subprocess.Popen[str]":
    """Start writing the cache of `make_plan` and `make_content`, slowly enough to be killed in the middle."""
    plan = ("--samples", json.dumps(samples))
    return start_module("support.commands", "made", *plan, "write", directory, "--pause", pause_s)
