"""Options that all commands share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.store.address import is_address
from featcache.store.home import expanded
from featcache.store.text import parse_size

Command = Callable[..., Any]

# Click's types take parameters only in newer versions, and type checkers require them.
if TYPE_CHECKING:
    _IntegerType = click.ParamType[int]
else:
    _IntegerType = click.ParamType


class _Size(_IntegerType):
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


class LocalPath(click.Path):
    """A file or folder of this machine, with ``~`` expanded; an address is refused and not shown, since pathlib would accept it."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Return the path."""
        if is_address(os.fsdecode(value)):
            self.fail("an address was given; name a file or folder of this machine", param, ctx)
        return super().convert(expanded(os.fsdecode(value)), param, ctx)


_ROOT = click.option(
    "--root",
    multiple=True,
    type=LocalPath(file_okay=False),
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
