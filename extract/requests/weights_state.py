"""Fingerprints of local weights: by size and times of change, which are quick, and by content, which also holds for a copy. No torch."""

from collections.abc import Iterator
from pathlib import Path

from featcache.store.files import sha256_file, sha256_hex

_SUFFIXES = frozenset((".json", ".safetensors", ".bin", ".py"))
"""Files of a folder that a model of transformers is loaded from."""


def weights_state(place: Path) -> str:
    """Describe a weights file, or the files of a folder, by size and times of change."""
    if not place.is_dir():
        return _file_state(place)
    return "; ".join(f"{path.name}: {_file_state(path)}" for path in _files(place))


def weights_sha256(place: Path) -> str:
    """Return SHA-256 of a weights file, or over the names and digests of the files of a folder."""
    if not place.is_dir():
        return sha256_file(place)
    lines = [f"{path.name} {sha256_file(path)}" for path in _files(place)]
    return sha256_hex("\n".join(lines).encode())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES and path.is_file())


def _file_state(path: Path) -> str:
    state = path.stat()
    # Copying tools can restore mtime, but nothing can set ctime back.
    return f"{state.st_size} bytes, changed at {state.st_mtime_ns} ns, status at {state.st_ctime_ns} ns"
