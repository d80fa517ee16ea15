"""Caches whose rows a new cache may take over: complete, of the same backbone and settings, with at least what is wanted."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.store.arrays import ArrayInfo
from featcache.store.catalogue import Entry, scan, select, slug
from featcache.store.errors import CacheError, RequestError
from featcache.store.inventory import Inventory
from featcache.store.planning import CONTENT_DIGEST
from featcache.store.progress import Reporter
from featcache.store.reading.reader import Cache
from featcache.store.requests import AUTO
from featcache.store.spec import CacheSpec

NO_REUSE = "none"
MAX_CACHES = 16
"""Most caches that are looked into without being named; their columns are read and hashed."""
_REUSABLE_DTYPES = ("float16", "bfloat16", "float32")
_OF_PIXELS = ("pixel_range", "exif_orientation")
"""Fields of a dataset's identity that change what is seen of an image."""


def reusable_caches(
    named: str,
    search: Sequence[Path],
    spec: CacheSpec,
    wanted: Inventory,
    dataset: str,
    reporter: Reporter,
) -> list[Cache]:
    """Return the caches to take rows from, in the order in which they are asked.

    Args:
        named: a cache (folder, key or name), ``auto`` for whatever lies under the roots, or ``none``.
        search: the roots.
        spec: spec of the new cache.
        wanted: everything that the new cache is to hold.
        dataset: name of the dataset; caches of a dataset of this name come first.
        reporter: receives a note where caches are left out.

    Raises:
        CacheNotFoundError: there is no cache of the given name.
        RequestError: the named cache cannot be used; the message says why.
    """
    if named == NO_REUSE:
        return []
    if named != AUTO:
        entry = select(search, named)
        problem = "it is not complete" if not entry.complete else mismatch(entry.cache, spec, wanted)
        if problem:
            raise RequestError(f"--reuse {named}: rows of {entry.path} cannot be reused: {problem}")
        return [entry.cache]
    if spec.dtype not in _REUSABLE_DTYPES:
        return []
    found = sorted(
        _usable(search, spec, wanted), key=lambda entry: (entry.dataset != slug(dataset), -entry.modified)
    )
    if len(found) > MAX_CACHES:
        reporter.message(
            f"note: rows are looked for in {MAX_CACHES} of {len(found)} caches of this backbone; name another with --reuse CACHE"
        )
    return [entry.cache for entry in found[:MAX_CACHES]]


def _usable(search: Sequence[Path], spec: CacheSpec, wanted: Inventory) -> Iterator[Entry]:
    for entry in scan(search):
        if not entry.complete or entry.key == spec.key:
            continue
        try:
            if mismatch(entry.cache, spec, wanted) is None:
                yield entry
        except (
            CacheError,
            OSError,
        ):  # a damaged cache is its own business, as long as nothing is taken from it
            continue


def mismatch(cache: Cache, spec: CacheSpec, wanted: Inventory) -> str | None:
    """Return why no row of a complete cache can stand in a cache of another spec; None if rows can."""
    if cache.partial:
        return "it is a partial copy"
    if spec.dtype not in _REUSABLE_DTYPES:
        return f"rows of {spec.dtype} are encoded with scales of their own cache"
    mine, other = spec.to_dict(), cache.spec.to_dict()
    differing = [
        *_differing("backbone", mine, other),
        *(name for name in ("dtype", "precision") if mine[name] != other[name]),
    ]
    if differing:
        return f"it differs in {', '.join(differing)}"
    if any(spec.dataset.get(name) != cache.spec.dataset.get(name) for name in _OF_PIXELS):
        return "its images were read with another pixel range or orientation"
    other_views = [name for name, view in wanted.views.items() if cache.inventory.views.get(name) != view]
    if other_views:
        return f"it lacks view {other_views[0]}, or has another one of that name"
    arrays = token_arrays(wanted)
    for name, split in cache.inventory.splits.items():
        if CONTENT_DIGEST not in split.arrays:
            return f"its split {name} does not tell the content of images"
        for array in arrays:
            held = split.arrays.get(array.name)
            if held is None or not {*array.layers} <= {*held.layers}:
                return f"its split {name} lacks {array.name}, or layers of it"
            if (held.dtype, held.tokens, held.row_shape) != (array.dtype, array.tokens, array.row_shape):
                return f"array {array.name} of its split {name} has another form"
    return None


def alike_in_every_split(inventory: Inventory) -> bool:
    """Return whether all splits want the same layers of the same arrays, so that a row may come from any split of a cache."""
    wanted = [
        {array.name: array.layers for array in split.arrays.values() if array.layers}
        for split in inventory.splits.values()
    ]
    return all(arrays == wanted[0] for arrays in wanted)


def token_arrays(inventory: Inventory) -> list[ArrayInfo]:
    """Return the token arrays of all splits, each once, with the layers of any of them."""
    arrays: dict[str, ArrayInfo] = {}
    for split in inventory.splits.values():
        for array in split.arrays.values():
            if array.layers and len(array.layers) > len(
                arrays[array.name].layers if array.name in arrays else ()
            ):
                arrays[array.name] = array
    return list(arrays.values())


def _differing(name: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}.{field}"
        for field in dict.fromkeys((*mine[name], *other[name]))
        if mine[name].get(field) != other[name].get(field)
    ]
