"""``featcache export``: a cache as HDF5, npy or safetensors."""

from pathlib import Path

import click

from featcache.cli.options import LocalPath, common_options
from featcache.store.catalogue import roots, select
from featcache.store.reading.reader import open_cache
from featcache.terminal.console import ConsoleReporter, echo, format_size, print_json

EPILOG = """\b
Examples:
  featcache export 0123456789ab --to h5 --out flowers.h5
  featcache export 0123456789ab --to npy --layers last --tokens cls --split test --out flowers-npy
"""


@click.command("export", epilog=EPILOG)
@click.argument("cache")
@click.option("--to", required=True, help="h5 (one file), npy or safetensors (a folder).")
@click.option("--out", required=True, type=LocalPath(), help="File or folder to make.")
@click.option("--layers", help="A layer set or a list such as 0,3,final.  [default: all that are cached]")
@click.option("--tokens", help="cls, ap or cls+ap.  [default: all that are cached]")
@click.option("--split", "splits", multiple=True, help="train or test; may be repeated.  [default: all]")
@common_options
def export_command(
    cache: str,
    to: str,
    out: Path,
    layers: str | None,
    tokens: str | None,
    splits: tuple[str, ...],
    root: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Write a cache, or parts of it, as files that other programs read. They appear whole or not at all.

    CACHE is a folder, a key or the beginning of one, or DATASET/MODEL-KEY.
    """
    from featcache.store.convert.export import export_cache

    opened = open_cache(select(roots(root), cache).path)
    reporter = ConsoleReporter(quiet=as_json)
    result = export_cache(opened, to, out, layers=layers, tokens=tokens, splits=splits, reporter=reporter)
    if as_json:
        splits_of = {part.name: {"samples": part.num_samples, "layers": part.layers} for part in result.parts}
        document = {
            "path": str(result.path),
            "key": opened.key,
            "bytes": result.num_bytes,
            "splits": splits_of,
        }
        print_json(document)
    else:
        echo(f"{result.path} ({format_size(result.num_bytes)})")
