"""Options that all commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

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
