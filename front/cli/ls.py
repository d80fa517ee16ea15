"""``featcache ls``: the caches there are."""

import shlex
import time
from pathlib import Path

import click

from featcache.api.listing import CacheListing, RemoteListing, list_remote, list_roots
from featcache.cli.options import common_options
from featcache.store.catalogue import roots, scan
from featcache.terminal.console import echo, format_duration, format_size, print_json, print_table

COLUMNS = ("dataset", "model", "key", "state", "train", "test", "layers", "size", "age")
NUMERIC = COLUMNS[4:]
_TYPE, _ROOT = "stored as", "root"
EPILOG = """\b
Examples:
  featcache ls
  featcache ls --root ~/caches --root /team/caches
  featcache ls s3://bucket/team --model vit-l --dataset flowers
"""


@click.command("ls", epilog=EPILOG)
@click.argument("remote", required=False)
@click.option("--model", help="Those whose model's name contains this, or that go by it otherwise.")
@click.option("--dataset", help="Those whose dataset's name contains this.")
@common_options
def ls_command(
    remote: str | None, model: str | None, dataset: str | None, root: tuple[Path, ...], as_json: bool
) -> None:
    """List the caches: dataset, model, key, state, samples, layers, size and age.

    With REMOTE, what teammates have pushed there: s3://, gs://, az://, hf://, ssh://, https:// or a shared folder.
    With several roots, a cache that two of them hold is listed once, where it is read from.
    """
    search = roots(root) if remote is None else []
    there = None if remote is None else list_remote(remote, model, dataset)
    caches = list_roots(search, model, dataset) if there is None else there.caches
    if as_json:
        print_json([cache.to_dict() for cache in caches])
    elif caches and there is not None:
        print_table(COLUMNS, [_table_row(cache) for cache in caches], numeric=NUMERIC)
        echo(f"featcache pull {there.where}/DATASET/MODEL-KEY")
    elif caches:
        # One root, and float16, are what most people have: they know where it is, and what.
        several_types = {cache.dtype for cache in caches} - {None, "float16"}
        more = (*((_TYPE,) if several_types else ()), *((_ROOT,) if len(search) > 1 else ()))
        cells = [{_TYPE: cache.dtype or "", _ROOT: str(cache.root)} for cache in caches]
        rows = [
            [*_table_row(cache), *(cell[name] for name in more)]
            for cache, cell in zip(caches, cells, strict=True)
        ]
        print_table((*COLUMNS, *more), rows, numeric=NUMERIC)
    elif there is not None:
        echo(f"{_none_found(model, dataset)} at {there.where}{_root_hint(there)}")
    else:
        echo(f"{_none_found(model, dataset)} under {', '.join(map(str, search))}")


def _root_hint(there: RemoteListing) -> str:
    """Return a hint for a folder with caches that nobody pushed, which is a root and no remote."""
    if there.folder is None or next(iter(scan([there.folder])), None) is None:
        return ""
    command = shlex.join(["featcache", "ls", "--root", str(there.folder)])
    return f" that were pushed; `{command}` lists those that are in it as a root"


def _table_row(cache: CacheListing) -> list[str]:
    """Return the cells of a cache; those of numbers are empty for one that is damaged or still being pushed."""
    names = [cache.dataset or "", cache.model or "", cache.key or "", cache.state]
    if cache.samples is None:
        return [*names, *[""] * len(NUMERIC)]
    samples = [str(cache.samples.get(split, "")) for split in ("train", "test")]
    age = "" if cache.modified is None else format_duration(max(0.0, time.time() - cache.modified))
    return [*names, *samples, str(cache.num_layers), format_size(cache.num_bytes or 0), age]


def _none_found(model: str | None, dataset: str | None) -> str:
    """Return the beginning of the line that replaces an empty table."""
    wanted = [text for text in (model, dataset) if text]
    return f"no caches that match {' and '.join(wanted)}" if wanted else "no caches"
