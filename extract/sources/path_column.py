"""Find the images that a table names, in any form of path, and name them without the folders of this machine."""

import ntpath
import os
import stat
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from featcache.extraction.sources.image_formats import EXTENSIONS
from featcache.extraction.sources.image_tree import refuse_irregular
from featcache.extraction.sources.shards import refuse_missing
from featcache.store.errors import DatasetError

STAT_THREADS = 16
_MISSING = (-1, 0)
_SHOWN = 120
_LOOKED_INTO = 64
"""Number of folders beside the table that are searched for a missing image."""


@dataclass
class ImageFiles:
    """N existing files."""

    paths: list[str]
    """Relative to the root, or absolute, as they are on disk."""
    sizes: list[int]
    """Bytes."""
    notes: list[str] = field(default_factory=list)


def find_images(root: Path, paths: Sequence[str], table: Path) -> ImageFiles:
    """Find the files that a table names.

    If a path does not exist as written, it is tried with ``/`` in place of the ``\\`` of Windows, and in the other Unicode form
    (macOS decomposes accents).

    Args:
        root: folder that relative paths start from.
        paths: as the table has them, N.
        table: names the table in errors.

    Raises:
        DatasetError: a file is missing or not regular, or several files match a path.
    """
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        states = list(pool.map(lambda path: _state(root, path), paths, chunksize=512))
    image_files = ImageFiles(list(paths), [size for size, _ in states])
    lacking = [row for row, size in enumerate(image_files.sizes) if size < 0]
    converted = 0
    for row in lacking:
        path, (size, mode) = _other_form(root, paths[row], table, row)
        if size >= 0:
            converted += "\\" in paths[row] and "\\" not in path
            image_files.paths[row], image_files.sizes[row], states[row] = path, size, (size, mode)
    _refuse_missing_images(root, [paths[row] for row in lacking if image_files.sizes[row] < 0], table)
    for row, (_, mode) in enumerate(states):
        if not stat.S_ISREG(mode):
            refuse_irregular(mode, f"{table}: row {row + 2}: {_short(paths[row])}")
    if converted:
        image_files.notes.append(
            f"{converted} paths of {table.name} are written with Windows's \\ and are read with /"
        )
    return image_files


def portable_ids(paths: Sequence[str], root: Path) -> tuple[list[str], list[str]]:
    """Return ids that hold no folder of this machine, and notes.

    A relative path is its own id. An absolute path is shortened to start at the root if it lies below it, else at the
    common folder of all absolute paths.
    """
    absolute = [path for path in paths if path.startswith("/")]
    if not absolute:
        return list(paths), []
    base = os.path.abspath(root)
    if os.path.commonpath([base, *absolute]) != base:
        base = os.path.commonpath([os.path.dirname(path) for path in absolute])
    ids = [os.path.relpath(path, base) if path.startswith("/") else path for path in paths]
    return ids, [f"{len(absolute)} paths are absolute; ids name these images from their common folder"]


def _state(root: Path, path: str) -> tuple[int, int]:
    try:
        state = os.stat(root / path)
    except (OSError, ValueError):
        return _MISSING
    return state.st_size, state.st_mode


def _other_form(root: Path, path: str, table: Path, row: int) -> tuple[str, tuple[int, int]]:
    forms = [path.replace("\\", "/")] if "\\" in path else [path]
    every = [*forms, *(unicodedata.normalize(form, path) for path in forms for form in ("NFC", "NFD"))]
    there = {path: state for path in dict.fromkeys(every) if (state := _state(root, path)) != _MISSING}
    if len(there) > 1:
        raise DatasetError(
            f"{table}: row {row + 2}: {_short(path)} is not there, and more than one file has this name in another Unicode "
            f"form: {', '.join(map(ascii, there))}; rename one, or write the very name"
        )
    return next(iter(there.items()), (path, _MISSING))


def _refuse_missing_images(root: Path, missing: Sequence[str], table: Path) -> None:
    if not missing:
        return
    if any("\\" in path or ntpath.splitdrive(path)[0] for path in missing):
        hint = f"images with the separators or drives of Windows (below {root}; csv:FILE?root=DIR names their folder)"
    else:
        hint = f"images (below {root}{_suggest_location(root, missing[0])})"
    refuse_missing([_short(path) for path in missing], hint, str(table))


def _suggest_location(root: Path, path: str) -> str:
    """Suggest where a missing image may lie: in a folder below the root, or under its name with an extension."""
    try:
        folders = sorted(entry.path for entry in os.scandir(root) if entry.is_dir())[:_LOOKED_INTO]
    except OSError:
        return ""
    for folder in folders:
        if _state(Path(folder), path) != _MISSING:
            return f"; {_short(path)} is in {folder}, which ?root={folder} names"
    for folder in (str(root), *folders):
        for extension in sorted(EXTENSIONS):
            if _state(Path(folder), path + extension) != _MISSING:
                return f"; {_short(path)}{extension} is in {folder}: paths need their extension"
    return ""


def _short(path: str) -> str:
    shown = path if path.isprintable() else ascii(path)[1:-1]
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}... ({len(path)} characters)"
