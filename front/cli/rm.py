"""``featcache rm``: remove one cache."""

from pathlib import Path

import click

from featcache.cli.options import common_options
from featcache.cli.remote import confirmed, remove_remote
from featcache.store.address import is_address
from featcache.store.catalogue import Entry, roots, select
from featcache.store.catalogue.removal import (
    check_removable,
    foreign_files_message,
    refuse_linked,
    remove_cache,
)
from featcache.store.catalogue.usage import Usage, usage
from featcache.store.errors import CacheNotFoundError, RequestError
from featcache.terminal.console import echo, format_size, print_json


@click.command("rm", epilog="\b\nExample:\n  featcache rm flowers/vit-l-14-0123456789ab\n")
@click.argument("cache")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def rm_command(cache: str, yes: bool, root: tuple[Path, ...], as_json: bool) -> None:
    """Remove a cache, after showing what it is and asking.

    CACHE is a folder, a key or the beginning of one, or DATASET/MODEL-KEY, or REMOTE/CACHE, which goes for all
    teammates. A cache that is being written is refused. Files in its folder that are not featcache's stay.
    """
    if is_address(cache):
        remove_remote(cache, yes, as_json)
        return
    refuse_linked(Path(cache))
    entry = _select(roots(root), cache)
    refuse_linked(entry.path)
    check_removable(entry.path)
    taken = usage(entry.path)
    if not yes and not confirmed(str(entry.path), _describe(entry, taken)):
        echo("nothing was removed", err=True)
        return
    left = remove_cache(entry.path)
    removed = {"path": str(entry.path), "key": entry.key, "bytes": taken.num_bytes}
    if as_json:
        print_json({**removed, "left": [str(path) for path in left]})
        return
    echo(f"removed {entry.path} ({format_size(taken.num_bytes)})")
    if left:
        echo(foreign_files_message(entry.path, left), err=True)


def _select(search: list[Path], cache: str) -> Entry:
    if not cache:
        raise RequestError("no cache is named; `featcache ls` lists them")
    try:
        return select(search, cache, exact=True)
    except CacheNotFoundError:
        if Path(cache).is_dir():
            raise RequestError(
                f"{cache} is not a cache (it has no manifest.json and no extraction was started in it), so it is not removed"
            ) from None
        raise


def _describe(entry: Entry, taken: Usage) -> str:
    state = "complete" if entry.complete else "incomplete"
    return (
        f"{entry.model} on {entry.dataset}, {state}, {taken.num_files} files, {format_size(taken.num_bytes)}"
    )
