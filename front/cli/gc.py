"""``featcache gc``: what killed runs left, and caches that nobody finished."""

import time
from contextlib import suppress
from pathlib import Path

import click

from featcache.cli.options import common_options
from featcache.console import ConsoleReporter, duration, echo, print_json, print_table, size
from featcache.store.catalogue import roots
from featcache.store.catalogue.leftovers import Leftover, find_leftovers
from featcache.store.catalogue.removal import left_behind
from featcache.store.errors import CacheError, FeatcacheError, RequestError

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
    found = _find(search, older_than, reporter)
    failed = _remove(found, reporter) if yes else []
    gone = [leftover for leftover in found if leftover not in failed] if yes else []
    if as_json:
        print_json([{**_describe(leftover), "removed": leftover in gone} for leftover in found])
    else:
        _print(found, gone if yes else None, search)
    if failed:
        raise CacheError(f"{len(failed)} of {len(found)} could not be removed, see above")


def _find(search: list[Path], older_than: float, reporter: ConsoleReporter) -> list[Leftover]:
    """Return the stale files under the roots, each once, since a root may be given under two names."""
    found: dict[tuple[int, int, str], Leftover] = {}
    for root in search:
        for leftover in find_leftovers(root, older_than, reporter=reporter):
            with suppress(FileNotFoundError):
                status = leftover.path.lstat()
                found.setdefault((status.st_dev, status.st_ino, leftover.kind), leftover)
    return list(found.values())


def _remove(found: list[Leftover], reporter: ConsoleReporter) -> list[Leftover]:
    failed = []
    for leftover in found:
        try:
            left = leftover.remove()
        except FeatcacheError as error:
            reporter.message(str(error))
            failed.append(leftover)
        else:
            if left:
                reporter.message(left_behind(leftover.path, left))
    return failed


def _print(found: list[Leftover], gone: list[Leftover] | None, search: list[Path]) -> None:
    if not found:
        echo(f"nothing to remove under {', '.join(map(str, search))}")
        return
    now = time.time()
    rows = [
        [
            item.kind,
            str(item.path),
            size(item.num_bytes),
            duration(max(0.0, now - item.modified)),
            item.reason,
        ]
        for item in found
    ]
    print_table(COLUMNS, rows, numeric=("size", "age"))
    total = size(sum(item.num_bytes for item in gone or found))
    echo(f"removed {len(gone)}: {total}" if gone else f"{len(found)}: {total}; --yes removes them")


def _describe(leftover: Leftover) -> dict[str, str | int | float]:
    return {
        "kind": leftover.kind,
        "path": str(leftover.path),
        "reason": leftover.reason,
        "bytes": leftover.num_bytes,
        "modified": leftover.modified,
    }
