"""``featcache convert``: a smaller cache of a cache."""

from pathlib import Path

import click

from featcache.cli.options import common_options
from featcache.cli.request_options import options_of
from featcache.cli.verify_report import show_losses
from featcache.store.catalogue import roots, select
from featcache.store.convert.requantize import ConvertRequest
from featcache.store.reading.reader import open_cache
from featcache.terminal.console import ConsoleReporter, echo, print_json

EPILOG = """\b
Examples:
  featcache convert 0123456789ab --dtype int8
  featcache convert photos/vit-l-14-0123456789ab --dtype int8 --json
"""


@click.command("convert", epilog=EPILOG)
@click.argument("cache")
@options_of(ConvertRequest)
@common_options
def convert_command(request: ConvertRequest, cache: str, root: tuple[Path, ...], as_json: bool) -> None:
    """Make a smaller cache of a cache, with a key of its own, and print what is lost.

    CACHE is a folder, a key or the beginning of one, or DATASET/MODEL-KEY; it stays as it is. Neither images nor backbone are
    needed. Run an interrupted command again to resume it.
    """
    from featcache.store.convert.requantize import convert

    search = roots(root)
    opened = open_cache(select(search, cache).path)
    done = convert(opened, request, search, reporter=ConsoleReporter(quiet=as_json))
    if as_json:
        print_json(done.to_dict())
        return
    show_losses(done.losses, done.samples, of_pass=False)
    echo(f"{'already there' if done.cached else 'cache'}: {done.path}")
