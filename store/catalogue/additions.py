"""Dropping an addition to a complete cache that nobody finishes."""

from contextlib import suppress
from pathlib import Path

from featcache.store import journal
from featcache.store.checking.addition import unfinished_addition
from featcache.store.errors import CacheError
from featcache.store.files import temporary_for
from featcache.store.journal import FEATURES, JOURNAL
from featcache.store.manifest import Manifest
from featcache.store.writing.claims import sole_owner
from featcache.store.zarr_metadata import METADATA_FILE, chunks_beside_splits


def addition_files(directory: Path) -> list[Path]:
    """Return the files of an unfinished addition, and its empty folders after them; none if there is no addition."""
    try:
        manifest = Manifest.read(directory)
    except (FileNotFoundError, CacheError):
        return []
    plan = unfinished_addition(directory, manifest)
    if plan is None:
        return []
    files: list[Path] = []
    for split in plan.inventory.splits.values():
        held = manifest.inventory.splits.get(split.name)
        for array in split.arrays.values():
            folder = directory / FEATURES / split.name / array.name
            names = [name for block in split.blocks() for name in array.chunk_names(block.index)]
            files += [
                path for name in names for path in folder.glob(f"{name}*") if _is_addition_file(path, name)
            ]
            if held is None or array.name not in held.arrays:
                files += [folder / METADATA_FILE, folder]
        if held is None:
            files += [folder.parent / METADATA_FILE, folder.parent]
    kept = chunks_beside_splits(manifest.inventory)
    for chunk in chunks_beside_splits(plan.inventory):
        if chunk not in kept:
            path = directory / FEATURES / chunk
            files += [path, path.parent / METADATA_FILE, path.parent]
    return files


def drop_addition(directory: Path) -> None:
    """Remove an unfinished addition; the cache is as it was before. The journal goes last, so a kill leaves it for the next try.

    Raises:
        CacheBusyError: a process is writing it.
    """
    with sole_owner(directory / JOURNAL):
        for path in addition_files(directory):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # it holds other files
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)
        journal.clear(directory / JOURNAL)


def _is_addition_file(path: Path, chunk: str) -> bool:
    """Return whether a name is ``c.1.0.0`` or ``c.1.0.0.<token>.partial``, but not ``c.1.0.01``."""
    return path.name == chunk or temporary_for(path.name) == chunk
