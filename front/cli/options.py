"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs; no progress."
)

root_option: Decorator = click.option(
    "--root",
    "root",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the caches; may be repeated, new caches go to the first. "
    "[default: $FEATCACHE_ROOT, else the user's cache folder]",
)
