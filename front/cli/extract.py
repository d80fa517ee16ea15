"""``featcache extract``: images to cached tokens."""

import shlex
import sys
from pathlib import Path

import click

from featcache.api.extraction import ExtractCall
from featcache.cli.estimate import print_estimate
from featcache.cli.options import common_options
from featcache.cli.request_options import options_of
from featcache.extraction.result import ExtractResult
from featcache.extraction.run import dry_run as estimate_extraction
from featcache.extraction.run import extract
from featcache.store.catalogue import remote_roots, roots
from featcache.terminal.console import ConsoleReporter, echo, format_duration, print_json

EPILOG = """\b
Examples:
  featcache extract --model vit-l-14 --dataset imagefolder:photos
  featcache extract --model vit-l-14 --dataset imagefolder:photos --dry-run
  featcache extract --model vit-l-14 --dataset flowers
  featcache extract --model dinov2-vit-s-14 --dataset flowers --input-size 448
  featcache extract --model vit-l-14 --dataset csv:scans.csv --group-by patient
"""


@click.command("extract", epilog=EPILOG)
@options_of(ExtractCall)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be written, where, and how long it would take; write nothing.",
)
@common_options
def extract_command(request: ExtractCall, root: tuple[Path, ...], as_json: bool, dry_run: bool) -> None:
    """Run a backbone over a dataset once and cache the tokens of all its layers.

    A request that a cache already answers ends at once; a run that was stopped goes on at its last committed block.
    What a cache lacks of the taps, layers, tokens and splits that are asked for is added to it. What a teammate has
    pushed to a remote that FEATCACHE_ROOT names is pulled from there.
    """
    reporter = ConsoleReporter(quiet=as_json)
    if dry_run:
        print_estimate(estimate_extraction(request, roots(root), reporter=reporter), as_json)
        return
    command = shlex.join(["featcache", *sys.argv[1:]])
    remotes = [] if request.force else remote_roots(root)
    result = extract(request, roots(root), reporter=reporter, command=command, remotes=remotes)
    if as_json:
        print_json(result.to_dict())
    else:
        for line in (*_summary(result), *_notes(result)):
            echo(line)


def _notes(result: ExtractResult) -> list[str]:
    what = "1 sample has" if result.skipped == 1 else f"{result.skipped} samples have"
    skipped = f"note: {what} no features, because of images that do not decode"
    told = [f"note: {note}" for note in result.notes]
    return [*told, *([skipped] if result.skipped else []), *(f"note: {shared}" for shared in result.shared)]


def _summary(result: ExtractResult) -> list[str]:
    if result.cached:
        return [f"already cached: {result.path}"]
    rate = result.samples / result.seconds if result.seconds else 0.0
    reused = f", {result.reused} of them reused from other caches" if result.reused else ""
    return [
        f"{result.samples} images in {format_duration(result.seconds)} ({rate:.1f} images/s){reused}",
        f"cache: {result.path}",
    ]
