"""``featcache pull``: a teammate's cache, or the part of it that is wanted."""

from pathlib import Path

import click

from featcache.cli.options import common_options
from featcache.cli.request_options import options_of
from featcache.store.address import parse_address
from featcache.store.catalogue import roots
from featcache.store.transfer.selection import CacheSelection
from featcache.terminal.console import ConsoleReporter, echo, format_duration, format_size, print_json

EPILOG = """\b
Examples:
  featcache ls s3://bucket/team
  featcache pull s3://bucket/team/flowers/vit-l-14-0123456789ab
  featcache pull s3://bucket/team/0123456789ab --layers last
  featcache pull hf://org/name/flowers/vit-l-14-0123456789ab --split test --layers 0,6,final
"""


@click.command("pull", epilog=EPILOG)
@click.argument("cache", metavar="REMOTE/CACHE")
@options_of(CacheSelection)
@click.option(
    "--check", is_flag=True, help="Hold what is here to its digests too, and fetch again what is damaged."
)
@common_options
def pull_command(
    request: CacheSelection,
    cache: str,
    check: bool,
    root: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Fetch a cache from a remote, or a part of it; every file is checked against its digest as it arrives.

    CACHE is the address of a remote, then DATASET/MODEL-KEY or the beginning of a key. A part can be completed later
    by another pull; what is here already does not move again. Run an interrupted command again to resume it.
    """
    from featcache.store.transfer.pull import pull

    reporter = ConsoleReporter(quiet=as_json)
    done = pull(parse_address(cache), roots(root), request, check=check, reporter=reporter)
    if as_json:
        print_json(done.to_dict())
        return
    part = "" if done.whole else " (a part; `featcache info` says which)"
    if done.num_bytes:
        echo(
            f"pulled {format_size(done.num_bytes)} in {done.files} files of data, {format_duration(done.seconds)}"
        )
        echo(f"cache: {done.path}{part}")
    else:
        echo(f"already here: {done.path}{part}")
