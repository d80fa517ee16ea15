"""``featcache probe``: heads trained on a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.grid import GridError, open_caches
from featcache.cli.options import SIZE, LocalPath, common_options
from featcache.cli.probe_table import NUMERIC, rows_table
from featcache.cli.training import parse_numbers, training_options, training_settings
from featcache.probing.requests.borrowing import borrow_for_probe
from featcache.probing.requests.request import ProbeRequest, jobs, left_out
from featcache.probing.requests.tables import TableRow
from featcache.store.address import is_address
from featcache.store.catalogue import roots
from featcache.store.errors import FeatcacheError, RequestError
from featcache.store.inventory import DEFAULT_TAP
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
    "--head",
    "heads",
    multiple=True,
    help="Such as auto, linear, attentive or logreg; may be repeated, or a list. See `featcache heads`.",
)
@click.option("--table", help="paper: the ten rows of the paper, instead of --head, --layers and --tokens.")
@click.option(
    "--layers", help="last, mid+last, quarters, all, every, or a list such as 0,3,final.  [default: by head]"
)
@click.option("--tokens", help="Kinds such as cls, cls+ap, cls+patches, cls+ap+grid2.  [default: by head]")
@click.option(
    "--tap",
    default=DEFAULT_TAP,
    show_default=True,
    help="Where in the blocks: what the cache holds of norm2, block, attn, mlp, norm1.",
)
@click.option(
    "--num-heads",
    type=click.IntRange(min=1),
    help="Attention heads.  [default: one for each token; 8 with patches]",
)
@click.option(
    "--protocol",
    default="paper",
    show_default=True,
    help="paper: the full sweep of the paper; paper-parity, quick, or a file of one's own. See `featcache protocols`.",
)
@click.option("--seeds", default="0", show_default=True, help="Seeds, such as 0,1,2.")
@click.option(
    "--cache",
    help="Folder or key of a cache, DATASET/MODEL-KEY, or REMOTE/CACHE, of which only what is needed is fetched.  "
    "[default: the one completed last]",
)
@click.option("--model", help="Take the cache of this model, or of these: x,y.")
@click.option("--dataset", help="Take the cache of this dataset, or of these: a,b.")
@click.option("--allow-partial", is_flag=True, help="Also take a cache whose extraction has not finished.")
@click.option(
    "--out",
    type=LocalPath(file_okay=False),
    default="featcache-results",
    show_default=True,
    help="Folder of the results.",
)
@click.option("--force", is_flag=True, help="Train again what the results hold already.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="Of matrix products: fp32, bf16, or auto: what is fast.",
)
@click.option(
    "--solver",
    default="adamw",
    show_default=True,
    help="adamw: train by the protocol; exact: solve for linear heads, penalty by penalty, as --head logreg does.",
)
@click.option(
    "--penalty", default="l2", show_default=True, help="Of the exact solver: l2, or group-lasso over layers."
)
@click.option(
    "--memory",
    type=SIZE,
    help="For tokens and members that train, such as 2GB; tokens that do not fit are streamed.  "
    "[default: about half of what is free]",
)
@training_options
@common_options
def probe_command(
    heads: tuple[str, ...],
    table: str | None,
    layers: str | None,
    tokens: str | None,
    tap: str,
    protocol: str,
    seeds: str,
    cache: str | None,
    model: str | None,
    dataset: str | None,
    allow_partial: bool,
    out: Path,
    force: bool,
    device: str,
    num_heads: int | None,
    precision: str,
    solver: str,
    penalty: str,
    memory: int | None,
    root: tuple[Path, ...],
    as_json: bool,
    **training: Any,
) -> None:
    """Train heads on cached tokens and score them on the test split.

    Trained along is the linear probe on the last layer's class token, over which gains are measured.
    """
    reporter = ConsoleReporter(quiet=as_json)
    request = ProbeRequest(
        heads=tuple(name.strip() for given in heads for name in given.split(",") if name.strip()),
        layers=layers,
        tokens=tokens,
        tap=tap,
        num_heads=num_heads,
        protocol=protocol,
        precision=precision,
        solver=solver,
        penalty=penalty,
        memory=memory,
        seeds=parse_numbers("seeds", seeds),
        out=out,
        force=force,
        table=table,
        **training_settings(training),
    )
    if cache and (model or dataset):
        raise RequestError(f"--cache says which cache is meant, {cache}; leave --model and --dataset out")
    if cache and is_address(cache):
        if allow_partial:
            raise RequestError(
                "--allow-partial is for caches here, and --cache names one on a remote; leave it out"
            )
        caches = [open_cache(borrow_for_probe(cache, roots(root), request, reporter))]
    else:
        caches = open_caches(roots(root), cache, model, dataset, allow_partial)
    if len(caches) == 1:
        named = cache or model or dataset
        reporter.message(f"cache: {caches[0].directory}" + ("" if named else " (completed last)"))
    # What is wrong with the request shows before torch, which takes seconds, is imported.
    for opened in caches:
        try:
            jobs(opened, request)
        except FeatcacheError:
            if len(caches) == 1:
                raise
            continue  # the grid passes it over, and says so
        for row, missing in left_out(opened, request):
            reporter.message(_left_out(opened, row, missing))

    from featcache.devices.choice import choose_device
    from featcache.probing.grid import probe_grid
    from featcache.probing.training.process import keep_freed_memory

    keep_freed_memory()
    result = probe_grid(caches, request, device=choose_device(device), reporter=reporter)
    if as_json:
        print_json([row.to_dict() for row in result.rows])
    elif result.rows:
        _print(result.rows, out, len(caches) > 1, request.settings().learning_rates)
    if result.failures and len(caches) == 1:
        raise next(iter(result.failures.values()))
    if result.failures:
        raise GridError(result.failures)


def _left_out(cache: Cache, row: TableRow, missing: str) -> str:
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
    notes: set[str] = set()
    for row in rows:
        if row.kept_layers is not None:
            echo(f"layers left with weight: {', '.join(row.kept_layers) or 'none'}")
        which = f"note: {row.head} on {row.layers}, {'+'.join(row.tokens)}, chose the"
        if len(rates) == 1:
            pass  # nothing was chosen
        elif row.learning_rate == max(rates):
            notes.add(f"{which} largest learning rate of {row.protocol}; it may not have converged")
        elif row.learning_rate == min(rates):
            notes.add(f"{which} smallest learning rate of {row.protocol}; a smaller one may be better")
        if not grid and (out / row.folder / HEATMAP_FILE).exists():
            echo(f"attention heatmap: {out / row.folder / HEATMAP_FILE}")
    for note in sorted(notes):
        echo(note)
    echo(f"results: {out / RESULTS_FILE}; `featcache results` shows them again, side by side")
