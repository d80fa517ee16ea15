"""``featcache rm`` of what lies on a remote."""

import sys

import click

from featcache.store.address import parse_address
from featcache.store.errors import RequestError
from featcache.terminal.console import echo, format_size, print_json


def remove_remote(cache_address: str, yes: bool, as_json: bool) -> None:
    """Remove a cache from a remote, after asking."""
    from featcache.store.transfer.removal import find_removable

    found = find_removable(parse_address(cache_address))
    with found.remote:
        what = f"{len(found.files)} files, {format_size(found.num_bytes)}, for everybody who uses this remote"
        if not yes and not confirmed(found.where, what):
            echo("nothing was removed", err=True)
            return
        found.remove()
    if as_json:
        print_json({"address": found.where, "key": found.name.key, "bytes": found.num_bytes})
    else:
        echo(f"removed {found.where} ({format_size(found.num_bytes)})")


def confirmed(where: str, what: str) -> bool:
    """Show what is to be removed, and ask.

    Raises:
        RequestError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise RequestError(f"{where} was not removed: there is no terminal to ask on; add --yes to remove it")
    echo(where, err=True)
    echo(what, err=True)
    return click.confirm("remove it?", err=True)
