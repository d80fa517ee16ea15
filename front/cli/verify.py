"""``featcache verify``: every byte of a cache against its digests, and some rows against the backbone."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.options import common_options
from featcache.cli.request_options import options_of
from featcache.cli.verify_report import Checked
from featcache.recompute.request import RecomputeRequest
from featcache.store.catalogue import completed_last, report_unreadable, roots, scan, select
from featcache.store.checking.repair import RepairResult, repair
from featcache.store.checking.verify import Verification, verify
from featcache.store.errors import FeatcacheError, RequestError
from featcache.store.manifest import MANIFEST_FILE
from featcache.terminal.console import ConsoleReporter, format_size, print_json

if TYPE_CHECKING:
    from featcache.recompute.outcome import Recomputation

EPILOG = """\b
Examples:
  featcache verify 0123456789ab
  featcache verify --all
  featcache verify photos/vit-l-14-0123456789ab --repair
  featcache verify --recompute 8 --dataset imagefolder:photos
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
@options_of(RecomputeRequest, only_with="samples")
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
    for directory in _directories(search, cache, every, repair_damage):
        verification = verify(directory, threads=threads, reporter=reporter)
        repaired = None
        if repair_damage and verification.damages:
            verification, repaired = _repair_cache(verification, threads, every, reporter)
        recomputed = _recompute(verification, request, reporter) if request else None
        results.append(Checked(verification, repaired, recomputed))
        if not as_json:
            results[-1].show()
    if as_json:
        documents = [result.to_dict() for result in results]
        print_json(documents if every else documents[0])
    if not all(result.passed for result in results):
        sys.exit(1)


def _repair_cache(
    verification: Verification, threads: int | None, every: bool, reporter: ConsoleReporter
) -> tuple[Verification, RepairResult | None]:
    """Repair a cache: fetch the damaged files of a copy from its origin, so that it stays usable; else drop damaged blocks."""
    from featcache.store.transfer.repair import repair_copy

    try:
        fetched = repair_copy(verification, reporter)
    except FeatcacheError as error:
        if not every:
            raise
        reporter.message(str(error))
        return verification, None
    if fetched is None:
        return verification, _drop_damage(verification, every, reporter)
    reporter.message(
        f"fetched again from {fetched.origin}: {fetched.files} files of data, {format_size(fetched.num_bytes)} in all"
    )
    again = verify(verification.directory, threads=threads, reporter=reporter)
    # The remaining damages concern files that the remote does not have, such as unexpected files.
    return again, _drop_damage(again, every, reporter) if again.damages else None


def _drop_damage(verification: Verification, every: bool, reporter: ConsoleReporter) -> RepairResult | None:
    try:
        return repair(verification)
    except FeatcacheError as error:
        if not every:
            raise
        reporter.message(str(error))  # the other caches are to be repaired all the same
        return None


def _recompute(
    verification: Verification, request: RecomputeRequest, reporter: ConsoleReporter
) -> "Recomputation | None":
    if verification.damages:
        reporter.message("not recomputed: the files are damaged")
        return None
    from featcache.recompute.run import recompute  # torch: seconds
    from featcache.store.reading.reader import open_cache

    return recompute(open_cache(verification.directory, allow_partial=True), request, reporter)


def _directories(search: list[Path], cache: str | None, every: bool, exact: bool) -> list[Path]:
    if every:
        entries = list(scan(search)) or [completed_last(search)]  # which says that there is none
    elif cache and (Path(cache) / MANIFEST_FILE).is_file():
        return [Path(cache).resolve()]  # whatever its manifest is worth
    else:
        entries = [select(search, cache, exact=exact) if cache else completed_last(search)]
    return [entry.path for entry in entries]
