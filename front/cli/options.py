"""Options that all commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

_UNITS = {
    "": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


class _Size(click.ParamType[int]):
    """A number of bytes, such as ``2GB`` or ``500 MiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip().lower())
        if match is None or match[2] not in _UNITS:
            self.fail(f"{value!r} is not a size; write such as 2GB or 500MB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


SIZE = _Size()

_ROOT = click.option(
    "--root",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the caches; may be repeated, new caches go to the first. "
    "[default: $FEATCACHE_ROOT, else the user's cache folder]",
)
_OUTPUT = (
    click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; no progress."),
    # Only main() looks at it, on the command line itself.
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)


def common_options(function: Command) -> Command:
    """Add ``--root``, ``--json`` (as `as_json`) and ``--debug`` to a command."""
    return _ROOT(output_options(function))


def output_options(function: Command) -> Command:
    """Add ``--json`` (as `as_json`) and ``--debug`` to a command that looks at no cache."""
    for option in reversed(_OUTPUT):
        function = option(function)
    return function
