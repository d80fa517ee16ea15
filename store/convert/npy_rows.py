"""Rows of .npy files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.store.convert.rows import RowArray, native
from featcache.store.errors import DatasetError
from featcache.store.reading.chunks import Array


def open_npy(path: Path) -> RowArray:
    """Map a .npy file; pickled objects are refused.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        array = _map(path)
    except (ValueError, EOFError) as error:
        raise DatasetError(f"{path} cannot be read as an array ({error})") from None
    return _NpyRows(path, tuple(array.shape), array.dtype.name)


@dataclass(frozen=True)
class _NpyRows:
    """Rows of a .npy file, mapped anew for every step: pages of a map that stays count as memory of this process."""

    path: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def where(self) -> str:
        return str(self.path)

    def rows(self, start: int, stop: int) -> Array:
        return native(np.array(_map(self.path)[start:stop]))


def _map(path: Path) -> Array:
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
