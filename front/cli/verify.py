"""``featcache verify``: every byte of a cache against its digests, and some rows against the backbone."""

import sys
from pathlib import Path

import click

from featcache.api.verification import check_cache, directory_of
from featcache.cli.options import common_options
from featcache.cli.request_options import options_of
from featcache.cli.verify_report import show
from featcache.recompute.request import RecomputeRequest
from featcache.store.catalogue import completed_last, report_unreadable, roots, scan
from featcache.store.errors import RequestError
from featcache.terminal.console import ConsoleReporter, print_json

EPILOG = """\b
Examples:
  featcache verify 0123456789ab
  featcache verify --all
  featcache verify photos/vit-l-14-0123456789ab --repair
  featcache verify --recompute 8 --dataset imagefolder:photos
  featcache verify --dtype-loss --dataset imagefolder:photos
"""


@click.command("verify", epilog=EPILOG)
@click.argument("cache", required=False)
@click.option("--all", "every", is_flag=True, help="All caches under the roots.")
@click.option(
    "--repair",
    "repair_damage",
    is_flag=True,
    help="Fetch what is damaged again where the cache was pulled from; else drop it, for the next extract to redo.",
)
@click.option("--threads", type=click.IntRange(1), help="Files read at the same time.  [default: by cores]")
@options_of(RecomputeRequest, only_with=("samples", "dtype_loss"))
@common_options
def verify_command(
    request: RecomputeRequest | None,
    cache: str | None,
    every: bool,
    repair_damage: bool,
    threads: int | None,
    root: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check every byte of a cache against the digests that were taken while it was written.

    CACHE is a folder, a key or the beginning of one, or DATASET/MODEL-KEY; without it the cache completed last.
    Exit status: 0 intact, 1 damaged or incomplete, 2 the request was wrong.
    """
    if every and (cache or request):
        raise RequestError("--all goes with neither CACHE nor --recompute; name one cache for these")
    reporter, results = ConsoleReporter(quiet=as_json), []
    search = roots(root)
    if not cache:
        report_unreadable(search, reporter)
    for folder in _every_folder(search) if every else [directory_of(search, cache, exact=repair_damage)]:
        results.append(
            check_cache(
                folder,
                repair=repair_damage,
                threads=threads,
                request=request,
                reporter=reporter,
                resilient=every,
            )
        )
        if not as_json:
            show(results[-1])
    if as_json:
        documents = [result.to_dict() for result in results]
        print_json(documents if every else documents[0])
    if not all(result.passed for result in results):
        sys.exit(1)


def _every_folder(search: list[Path]) -> list[Path]:
    entries = list(scan(search)) or [completed_last(search)]  # which says that there is none
    return [entry.path for entry in entries]
