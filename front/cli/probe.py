"""``featcache probe``: heads trained on a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featcache.cli.grid import GridError, open_caches
from featcache.cli.options import common_options
from featcache.cli.probe_table import NUMERIC, edge_notes, interval_notes, rows_table
from featcache.cli.request_options import options_of
from featcache.probing.requests.borrowing import borrow_for_probe
from featcache.probing.requests.jobs import jobs, left_out
from featcache.probing.requests.request import LAYER_CHOICE, HeadRequest, ProbeRequest
from featcache.store.address import is_address
from featcache.store.catalogue import preprocessing_beside, roots, scan
from featcache.store.errors import FeatcacheError, RequestError
from featcache.store.reading.reader import Cache, open_cache
from featcache.terminal.console import ConsoleReporter, echo, print_json, print_table

if TYPE_CHECKING:
    from featcache.probing.results.rows import ResultRow

EPILOG = """\b
Examples:
  featcache probe --head auto
  featcache probe --head linear --head attentive --layers all --tokens cls+ap --seeds 0,1,2
  featcache probe --head attentive --layers last --tokens cls+patches
  featcache probe --head linear --layers all --tokens cls+ap --solver exact
  featcache probe --head logreg,ridge --input standard --shots 1,5,10 --draws 5
  featcache probe --table paper --model dinov2-vit-s-14,vit-l-14 --dataset photos,flowers
  featcache probe --head linear --cache s3://bucket/team/flowers/vit-l-14-0123456789ab
"""


@click.command("probe", epilog=EPILOG)
@click.option(
    "--cache",
    help="Folder or key of a cache, DATASET/MODEL-KEY, or REMOTE/CACHE, of which only what is needed is fetched.  "
    "[default: the one completed last]",
)
@click.option("--model", help="Take the cache of this model, or of these: x,y.")
@click.option("--dataset", help="Take the cache of this dataset, or of these: a,b.")
@click.option("--allow-partial", is_flag=True, help="Also take a cache whose extraction has not finished.")
@options_of(ProbeRequest)
@common_options
def probe_command(
    request: ProbeRequest,
    cache: str | None,
    model: str | None,
    dataset: str | None,
    allow_partial: bool,
    root: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Train heads on cached tokens and score them on the test split.

    Beside them it fits baselines: the linear probe on the last class token, solved exactly and trained by the protocol, over which
    gains are measured, and the solved probe on the best single layer.
    """
    reporter = ConsoleReporter(quiet=as_json)
    caches = _open_caches(request, roots(root), cache, model, dataset, allow_partial, reporter)
    _check(caches, request, reporter)

    from featcache.devices.choice import choose_device
    from featcache.probing.grid import probe_grid
    from featcache.probing.training.process import keep_freed_memory
    from featcache.zero_shot.choice import embedder_for

    keep_freed_memory()
    device = choose_device(request.device)
    result = probe_grid(
        caches,
        request,
        device=device,
        reporter=reporter,
        embed_classes=embedder_for(request, device, reporter),
    )
    if as_json:
        print_json([row.to_dict() for row in result.rows])
    elif result.rows:
        _print(result.rows, request.out, len(caches) > 1, request.settings().learning_rates)
    if result.failures and len(caches) == 1:
        raise next(iter(result.failures.values()))
    if result.failures:
        raise GridError(result.failures)


def _open_caches(
    request: ProbeRequest,
    search: Sequence[Path],
    cache: str | None,
    model: str | None,
    dataset: str | None,
    allow_partial: bool,
    reporter: ConsoleReporter,
) -> list[Cache]:
    """Open the caches that the options name; of one on a remote, fetch what the request needs."""
    if cache and (model or dataset):
        raise RequestError(f"--cache says which cache is meant, {cache}; leave --model and --dataset out")
    if cache and is_address(cache):
        if allow_partial:
            raise RequestError(
                "--allow-partial is for caches here, and --cache names one on a remote; leave it out"
            )
        caches = [open_cache(borrow_for_probe(cache, search, request, reporter))]
    else:
        caches = open_caches(search, cache, model, dataset, allow_partial)
    if len(caches) == 1:
        named = cache or model or dataset
        words = [] if named else ["completed last"]
        if (preprocessing := _preprocessing_beside(caches[0], search)) is not None:
            words.append(preprocessing)
        reporter.message(f"cache: {caches[0].directory}" + (f" ({'; '.join(words)})" if words else ""))
    return caches


def _preprocessing_beside(cache: Cache, search: Sequence[Path]) -> str | None:
    """Return the preprocessing of a cache in words, if there is a cache of its model and dataset that differs in it."""
    folder = cache.directory.resolve()
    beside = [entry for entry in scan(search) if entry.complete and entry.dataset == folder.parent.name]
    words = preprocessing_beside(beside)
    return next((text for path, text in words.items() if path.resolve() == folder), None)


def _check(caches: Sequence[Cache], request: ProbeRequest, reporter: ConsoleReporter) -> None:
    """Refuse a wrong request before torch, which takes seconds, is imported; report what is left out."""
    for opened in caches:
        try:
            jobs(opened, request)
        except FeatcacheError:
            if len(caches) == 1:
                raise
            continue  # the grid passes it over, and says so
        for row, missing in left_out(opened, request):
            reporter.message(_left_out(opened, row, missing))


def _left_out(cache: Cache, row: HeadRequest, missing: str) -> str:
    reason = f"{cache.directory} holds no {missing} of the last layer"
    if missing == "patches":
        reason += "; the same `featcache extract` with --tokens patches adds them"
    return f"row left out: {row}: {reason}"


def _print(rows: Sequence["ResultRow"], out: Path, grid: bool, rates: Sequence[float]) -> None:
    """The table, and what there is to say about its rows."""
    from featcache.probing.attention import HEATMAP_FILE
    from featcache.probing.results.rows import RESULTS_FILE

    columns, lines = rows_table(rows, grid)
    print_table(columns, lines, numeric=NUMERIC)
    for row in rows:
        if row.kept_layers is not None and row.solver != LAYER_CHOICE:
            echo(f"layers left with weight: {', '.join(row.kept_layers) or 'none'}")
        if not grid and (out / row.folder / HEATMAP_FILE).exists():
            echo(f"attention heatmap: {out / row.folder / HEATMAP_FILE}")
    for note in (*edge_notes(rows, rates), *interval_notes(rows)):
        echo(f"note: {note}")
    echo(f"results: {out / RESULTS_FILE}; `featcache results` shows them again, side by side")
