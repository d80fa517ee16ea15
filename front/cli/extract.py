"""``featcache extract``: images to cached tokens."""

import shlex
import sys
from pathlib import Path

import click

from featcache.cli.estimate import print_estimate
from featcache.cli.options import LocalPath, common_options, dataset_options
from featcache.extraction.requests.feature_selection import Contents
from featcache.extraction.requests.request import STOP, ExtractRequest
from featcache.extraction.result import ExtractResult
from featcache.extraction.run import dry_run as estimate_extraction
from featcache.extraction.run import extract
from featcache.store.catalogue import remote_roots, roots
from featcache.store.inventory import DEFAULT_TAP, TAPS
from featcache.store.requests import AUTO
from featcache.store.spec import PRECISIONS, STORED_DTYPES
from featcache.store.text import parse_names
from featcache.terminal.console import ConsoleReporter, echo, format_duration, print_json

EPILOG = """\b
Examples:
  featcache extract --model vit-l-14 --dataset imagefolder:photos
  featcache extract --model vit-l-14 --dataset imagefolder:photos --dry-run
  featcache extract --model vit-l-14 --dataset flowers
  featcache extract --model vit-l-14 --dataset csv:scans.csv --group-by patient
"""


@click.command("extract", epilog=EPILOG)
@click.option(
    "--model", required=True, help="An alias such as vit-l-14, or timm:NAME, or open_clip:ARCHITECTURE/TAG."
)
@click.option(
    "--dataset",
    required=True,
    help="An alias such as flowers (see featcache datasets), or KIND:PLACE such as imagefolder:DIR.",
)
@click.option(
    "--weights",
    type=LocalPath(),
    help="Local weights (safetensors or a torch state dict) instead of the hub's.",
)
@click.option(
    "--weights-key",
    metavar="NAME",
    help="Set of weights to take from a file that holds several, such as model_ema or teacher.  [default: as the library]",
)
@click.option(
    "--tap",
    default=DEFAULT_TAP,
    show_default=True,
    help=f"Where in a block: {', '.join(TAPS)}; several with commas.",
)
@click.option(
    "--layers", default="every", show_default=True, help="Blocks: a layer set, or a list such as 0,6,11."
)
@click.option(
    "--tokens",
    default="cls,ap",
    show_default=True,
    help="Kinds of tokens besides class token and average: registers, patches, grid2, grid4.",
)
@click.option("--patches", help="Layers whose patch tokens are cached, such as final or 5,11,final.")
@click.option("--split", "splits", help="Splits to cache, such as test.  [default: all]")
@dataset_options
@click.option(
    "--dtype", default="float16", show_default=True, help=f"Stored type: {', '.join(STORED_DTYPES)}."
)
@click.option(
    "--precision", default=AUTO, show_default=True, help=f"Forward pass: {', '.join((AUTO, *PRECISIONS))}."
)
@click.option(
    "--batch-size", type=int, help="Images in a forward pass.  [default: by device and its free memory]"
)
@click.option("--workers", type=int, help="Processes that decode images.  [default: by cores]")
@click.option("--device", default=AUTO, show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--compile",
    is_flag=True,
    help="Compile the forward pass; it is checked against the plain one before anything is written.",
)
@click.option(
    "--on-error",
    default=STOP,
    show_default=True,
    help="An image that does not decode: stop, or skip it and go on; its row then has no features.",
)
@click.option("--force", is_flag=True, help="Extract even what a teammate has on a remote in FEATCACHE_ROOT.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be written, where, and how long it would take; write nothing.",
)
@common_options
def extract_command(
    root: tuple[Path, ...],
    as_json: bool,
    dry_run: bool,
    force: bool,
    tap: str,
    layers: str,
    tokens: str,
    patches: str | None,
    splits: str | None,
    test_split: str | None,
    **options: object,
) -> None:
    """Run a backbone over a dataset once and cache the tokens of all its layers.

    A request that a cache already answers ends at once; a run that was stopped goes on at its last committed block.
    What a cache lacks of the taps, layers, tokens and splits that are asked for is added to it. What a teammate has
    pushed to a remote that FEATCACHE_ROOT names is pulled from there.
    """
    contents = Contents(parse_names(tap), layers, tokens, patches, parse_names(splits or ""))
    tests = parse_names(test_split or "")
    request = ExtractRequest(contents=contents, test_splits=tests, **options)  # type: ignore[arg-type]  # click's values have the fields' types
    reporter = ConsoleReporter(quiet=as_json)
    if dry_run:
        print_estimate(estimate_extraction(request, roots(root), reporter=reporter), as_json)
        return
    command = shlex.join(["featcache", *sys.argv[1:]])
    remotes = [] if force else remote_roots(root)
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
    return [
        f"{result.samples} images in {format_duration(result.seconds)} ({rate:.1f} images/s)",
        f"cache: {result.path}",
    ]
