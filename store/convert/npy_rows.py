"""Rows of .npy files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.store.convert.rows import RowArray, native
from featcache.store.errors import DatasetError
from featcache.store.npy import NpyLayout, npy_layout
from featcache.store.reading.chunks import Array


def open_npy(path: Path) -> RowArray:
    """Map a .npy file; pickled objects are refused.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            layout = npy_layout(file, path.stat().st_size)
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as an array ({error})") from None
    return _NpyRows(path, layout)


@dataclass(frozen=True)
class _NpyRows:
    """Rows of a .npy file, mapped anew for every step: pages of a map that stays count as memory of this process."""

    path: Path
    layout: NpyLayout

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def dtype(self) -> str:
        return self.layout.dtype.name

    def rows(self, start: int, stop: int) -> Array:
        layout = self.layout
        if not layout.num_bytes:
            return native(np.empty((stop - start, *layout.shape[1:]), layout.dtype))
        try:
            order = "F" if layout.fortran else "C"
            mapped = np.memmap(self.path, layout.dtype, "r", layout.start, layout.shape, order)  # type: ignore[call-overload]
        except (ValueError, OSError) as error:
            raise DatasetError(f"{self.path} cannot be read any more ({error})") from None
        return native(np.array(mapped[start:stop]))
