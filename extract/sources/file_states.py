"""Size and times of the files that a dataset's images are read from, to notice files that may have been replaced."""

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAX_GROUPS = 2048
"""Largest number of fingerprints of a dataset: one for each file, or for groups of files in larger datasets."""
_FINGERPRINT_BYTES = 16
_SETTLED_NS = 2 * 10**9
"""Age from which the times of a file tell its content; file systems round times to up to two seconds."""
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


def row_fingerprints(
    ids: Iterable[str], places: Iterable[tuple[str | Path, object]]
) -> npt.NDArray[np.uint8]:
    """Return a digest ``[N, 16]`` for each row, over its id, the state and inode of its file now, and its place in the file.

    Args:
        ids: of the N rows.
        places: file of each row, and place of the row in the file.
    """
    files, insides = [], []
    for path, inside in places:
        files.append(os.fspath(path))
        insides.append(inside)
    distinct = list(dict.fromkeys(files))
    with ThreadPoolExecutor(_THREADS) as pool:  # hides the latency of network file systems
        parts = (distinct[start : start + _BATCH] for start in range(0, len(distinct), _BATCH))
        states = [state for part in pool.map(_identities, parts) for state in part]
    by_file = dict(zip(distinct, states, strict=True))
    digests = []
    for sample_id, path, inside in zip(ids, files, insides, strict=True):
        state = by_file[path]
        text = f"{state}\0{inside}\0{sample_id}".encode()
        digests.append(
            hashlib.sha256(text).digest()[:_FINGERPRINT_BYTES] if state else bytes(_FINGERPRINT_BYTES)
        )
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _FINGERPRINT_BYTES)


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


def _identities(paths: Iterable[str]) -> list[str]:
    return [_identity(path) for path in paths]


def _identity(path: str) -> str:
    """Return device, inode, size and times of a file as text; empty if it cannot be looked at, or changed just now."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    # A second change within the clock's grain would leave the same times behind.
    if max(status.st_mtime_ns, status.st_ctime_ns) > time.time_ns() - _SETTLED_NS:
        return ""
    # A copying tool can restore mtime, but nothing can set ctime back.
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _state(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
