"""``featcache gc``: what killed runs left, and caches that nobody finished."""

import time
from contextlib import suppress
from pathlib import Path

import click

from featcache.cli.options import common_options
from featcache.store.catalogue import roots
from featcache.store.catalogue.removal import foreign_files_message
from featcache.store.catalogue.stale_files import StaleFile, find_stale_files
from featcache.store.errors import CacheError, FeatcacheError, RequestError
from featcache.terminal.console import (
    ConsoleReporter,
    echo,
    format_duration,
    format_size,
    print_json,
    print_table,
)

COLUMNS = ("kind", "path", "size", "age", "why")


@click.command("gc", epilog="\b\nExamples:\n  featcache gc\n  featcache gc --older-than 30 --yes\n")
@click.option(
    "--older-than",
    type=float,
    default=7.0,
    show_default=True,
    metavar="DAYS",
    help="Age from which an incomplete cache counts as abandoned.",
)
@click.option("--yes", is_flag=True, help="Remove what is listed.")
@common_options
def gc_command(older_than: float, yes: bool, root: tuple[Path, ...], as_json: bool) -> None:
    """List what can go, and remove it with --yes.

    Remains of interrupted removals and writes, caches that nobody finished, and exact copies of a cache under another
    dataset's name, where every byte of the one that stays is intact. Files stay unless their content shows that they are
    featcache's. Looks at the first root only, unless --root says otherwise: the others are shared.
    """
    if not older_than >= 0:
        raise RequestError(f"--older-than must be 0 days or more, got {older_than:g}")
    search = roots(root) if root else roots()[:1]
    reporter = ConsoleReporter()
    stale_files = _find(search, older_than, reporter)
    failed = _remove(stale_files, reporter) if yes else []
    gone = [stale for stale in stale_files if stale not in failed] if yes else []
    if as_json:
        print_json([{**_describe(stale), "removed": stale in gone} for stale in stale_files])
    else:
        _print(stale_files, gone if yes else None, search)
    if failed:
        raise CacheError(f"{len(failed)} of {len(stale_files)} could not be removed, see above")


def _find(search: list[Path], older_than: float, reporter: ConsoleReporter) -> list[StaleFile]:
    """Return the stale files under the roots, each once, since a root may be given under two names."""
    stale_files: dict[tuple[int, int, str], StaleFile] = {}
    for root in search:
        for stale in find_stale_files(root, older_than, reporter=reporter):
            with suppress(FileNotFoundError):
                status = stale.path.lstat()
                stale_files.setdefault((status.st_dev, status.st_ino, stale.kind), stale)
    return list(stale_files.values())


def _remove(stale_files: list[StaleFile], reporter: ConsoleReporter) -> list[StaleFile]:
    failed = []
    for stale in stale_files:
        try:
            left = stale.remove()
        except FeatcacheError as error:
            reporter.message(str(error))
            failed.append(stale)
        else:
            if left:
                reporter.message(foreign_files_message(stale.path, left))
    return failed


def _print(stale_files: list[StaleFile], gone: list[StaleFile] | None, search: list[Path]) -> None:
    if not stale_files:
        echo(f"nothing to remove under {', '.join(map(str, search))}")
        return
    now = time.time()
    rows = [
        [
            item.kind,
            str(item.path),
            format_size(item.num_bytes),
            format_duration(max(0.0, now - item.modified)),
            item.reason,
        ]
        for item in stale_files
    ]
    print_table(COLUMNS, rows, numeric=("size", "age"))
    total = format_size(sum(item.num_bytes for item in gone or stale_files))
    echo(f"removed {len(gone)}: {total}" if gone else f"{len(stale_files)}: {total}; --yes removes them")


def _describe(stale: StaleFile) -> dict[str, str | int | float]:
    return {
        "kind": stale.kind,
        "path": str(stale.path),
        "reason": stale.reason,
        "bytes": stale.num_bytes,
        "modified": stale.modified,
    }
