"""``featcache rm`` of what lies on a remote."""

import sys

import click

from featcache.store.address import parse_address
from featcache.store.errors import RequestError
from featcache.terminal.console import echo, format_size, print_json


def remove_remote(cache_address: str, yes: bool, as_json: bool) -> None:
    """Remove a cache from a remote, after asking."""
    from featcache.store.transfer.removal import find_removable

    removable = find_removable(parse_address(cache_address))
    with removable.remote:
        content = f"{len(removable.files)} files, {format_size(removable.num_bytes)}, for everybody who uses this remote"
        if not yes and not confirmed(removable.where, content):
            echo("nothing was removed", err=True)
            return
        removable.remove()
    if as_json:
        print_json({"address": removable.where, "key": removable.name.key, "bytes": removable.num_bytes})
    else:
        echo(f"removed {removable.where} ({format_size(removable.num_bytes)})")


def confirmed(where: str, content: str) -> bool:
    """Show what is to be removed, and ask.

    Raises:
        RequestError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise RequestError(f"{where} was not removed: there is no terminal to ask on; add --yes to remove it")
    echo(where, err=True)
    echo(content, err=True)
    return click.confirm("remove it?", err=True)
