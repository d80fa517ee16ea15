"""Options that all commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from featcache.store.text import parse_size

Command = Callable[..., Any]


class _Size(click.ParamType[int]):
    """A number of bytes, such as ``2GB`` or ``500 MiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        size = parse_size(value)
        if size is None:
            self.fail(f"{value!r} is not a size; write such as 2GB or 500MB", param, ctx)
        return size


SIZE = _Size()

_OPTIONS = (
    click.option(
        "--root",
        multiple=True,
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Folder of the caches; may be repeated, new caches go to the first. "
        "[default: $FEATCACHE_ROOT, else the user's cache folder]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; no progress."),
    # Only main() looks at it, on the command line itself.
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)


def common_options(function: Command) -> Command:
    """Add ``--root``, ``--json`` (as `as_json`) and ``--debug`` to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
