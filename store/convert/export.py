"""`featcache export`, as a function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.store.catalogue.usage import usage
from featcache.store.convert.export_h5 import export_h5
from featcache.store.convert.export_npy import export_npy
from featcache.store.convert.export_safetensors import export_safetensors
from featcache.store.convert.outputs import check_target, stale_outputs, with_target
from featcache.store.convert.selection import Part, choose, left_out
from featcache.store.errors import UnknownNameError
from featcache.store.progress import Reporter, Silent, Update
from featcache.store.quantization import INT8
from featcache.store.reading.reader import Cache

Exporter = Callable[[Cache, Sequence[Part], Path, Update], None]

EXPORTERS: dict[str, tuple[Exporter, str]] = {
    "h5": (export_h5, "rows"),
    "npy": (export_npy, "rows of layers"),
    "safetensors": (export_safetensors, "rows of layers"),
}


@dataclass(frozen=True)
class ExportResult:
    """Result of an export."""

    path: Path
    num_bytes: int
    parts: Sequence[Part]


def export_cache(
    cache: Cache,
    to: str,
    out: Path,
    *,
    layers: str | None = None,
    tokens: str | None = None,
    splits: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> ExportResult:
    """Write a cache, or parts of it, as files of another format. They appear whole or not at all.

    Args:
        cache: the cache, complete.
        to: ``h5`` (one file), ``npy`` or ``safetensors`` (a folder).
        out: file or folder to make.
        layers: a layer set or a list of layers; all that are cached if not given.
        tokens: token kinds; all that are cached if not given.
        splits: splits; all if none is given.
        reporter: receives progress.

    Raises:
        UnknownNameError: there is no such format, split, layer or token kind.
        RequestError: `out` exists, or its folder does not.
        CacheError: a file of the cache is missing or of the wrong size.
        FeatcacheError: the disk is full.
    """
    if to not in EXPORTERS:
        raise UnknownNameError("format", to, EXPORTERS)
    parts = choose(cache, layers, tokens, splits)
    check_target(out, sum(part.num_bytes for part in parts))
    write, unit = EXPORTERS[to]
    reporter = reporter or Silent()
    if cache.spec.dtype == INT8:
        reporter.message(f"note: int8 features are written decoded, as {parts[0].dtype}")
    if (note := left_out(parts)) is not None:
        reporter.message(f"note: {note}")
    for begun in stale_outputs(out):
        reporter.message(
            f"note: {begun} was begun by another export of this name; remove it if that was killed"
        )
    with with_target(out), reporter.progress("exporting", unit) as update:
        write(cache, parts, out, update)
    return ExportResult(out, usage(out).num_bytes, parts)
