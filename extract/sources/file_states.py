"""Size and times of the files that a dataset's images are read from, to notice files that may have been replaced."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAX_GROUPS = 2048
"""Largest number of fingerprints of a dataset: one for each file, or for groups of files in larger datasets."""
_THREADS = 16
_BATCH = 512
_WITHOUT_COMPRESSION = (".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".tga")
_TIFF = (".tif", ".tiff")

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FileStates:
    """The states of F files."""

    states: npt.NDArray[np.int64]
    """``[F, 3]``: size in bytes, times of the last change of content and of status (mtime, ctime) in nanoseconds."""
    per_row: bool
    """True if file i holds row i, counted over all splits in order; otherwise every file holds many rows."""
    suffixes: tuple[str, ...] = ()
    """Extensions ``[F]`` in lower case, where there is a file for every row."""

    @classmethod
    def of(cls, paths: Iterable[str | Path], per_row: bool) -> "FileStates":
        """Read the states of some files; a missing file has zeros."""
        names = [os.fspath(path) for path in paths]
        with ThreadPoolExecutor(_THREADS) as pool:  # hides the latency of network file systems
            parts = (names[start : start + _BATCH] for start in range(0, len(names), _BATCH))
            rows = [row for part in pool.map(_states, parts) for row in part]
        suffixes = tuple(os.path.splitext(name)[1].lower() for name in names) if per_row else ()
        return cls(np.array(rows, np.int64).reshape(-1, 3), per_row, suffixes)

    @cached_property
    def fingerprints(self) -> list[str]:
        """At most `MAX_GROUPS` digests, each over the states of consecutive files."""
        parts = np.array_split(self.states, min(MAX_GROUPS, max(len(self.states), 1)))
        return [hashlib.sha256(part.tobytes()).hexdigest()[:16] for part in parts]

    def differing(self, fingerprints: list[str]) -> Mask:
        """Return a mask ``[F]`` of the files whose group has a new fingerprint; all files if the number of groups differs."""
        own = self.fingerprints
        if len(own) != len(fingerprints):
            return np.ones(len(self.states), np.bool_)
        parts = np.array_split(np.arange(len(self.states)), len(own))
        mask = np.zeros(len(self.states), np.bool_)
        for part, before, now in zip(parts, fingerprints, own, strict=True):
            mask[part] = before != now
        return mask

    def changed_since(self, seconds: float) -> Mask:
        """Return a mask ``[F]`` of the files whose content or status changed at that time (since the epoch) or later."""
        mask: Mask = self.states[:, 1:].max(1, initial=0) >= int(seconds * 1e9)
        return mask

    def with_suffix(self, suffixes: tuple[str, ...]) -> Mask:
        """Return a mask ``[F]`` of the files with one of some extensions; none if files do not correspond to rows."""
        if not self.per_row:
            return np.zeros(len(self.states), np.bool_)
        return np.array([suffix in suffixes for suffix in self.suffixes], np.bool_)

    @property
    def uncompressed(self) -> Mask:
        """Mask ``[F]`` of the files in uncompressed formats, in which every image of one shape has the same size."""
        return self.with_suffix(_WITHOUT_COMPRESSION)

    @property
    def tiff(self) -> Mask:
        """Mask ``[F]`` of the TIFF files."""
        return self.with_suffix(_TIFF)


def containers_of(place: Path) -> list[Path]:
    """Return the file at `place`, or the files directly in that folder; none if neither exists."""
    try:
        if place.is_file():
            return [place]
        return sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else []
    except (OSError, ValueError):
        return []


def _states(paths: Iterable[str]) -> list[tuple[int, int, int]]:
    return [_state(path) for path in paths]


def _state(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
