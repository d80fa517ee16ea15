"""Read rows of an array in an HDF5 file: at their offset where they are stored unpacked, else through HDF5."""

import os
import weakref
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.store.convert.h5_files import find_dataset, h5_errors, open_h5
from featcache.store.errors import DatasetError

if TYPE_CHECKING:
    import h5py

Array = npt.NDArray[Any]


def open_rows(path: Path, name: str) -> "ContiguousRows | Hdf5Rows":
    """Return the rows of the array `name`, which must lie in the file `path` itself.

    Raises:
        DatasetError: the array does not exist, or cannot be read; see `find_dataset`.
    """
    with open_h5(path) as file, h5_errors(f"{path}: {name}"):
        dataset = _required(file, path, name)
        rows = Hdf5Rows(path, name, tuple(dataset.shape), dataset.dtype)
        if not dataset.shape or not _is_contiguous(dataset):
            return rows
        contiguous = ContiguousRows(path, dataset.dtype, dataset.id.get_offset(), tuple(dataset.shape))
        # The offset that HDF5 reports is used only if both ways give the same values.
        for row in {0, dataset.shape[0] - 1}:
            if contiguous[row : row + 1].tobytes() != np.asarray(dataset[row : row + 1]).tobytes():
                return rows
        return contiguous


class ContiguousRows:
    """An array ``[N, ...]`` in one piece of a file, read at its offset, without HDF5's lock and without a memory map."""

    def __init__(self, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, dtype
        self.row_bytes = prod(shape[1:]) * dtype.itemsize
        self.path, self._offset = path, offset
        self._descriptor: int | None = None

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(self.shape[0])
        count = max(0, stop - start)
        values = np.empty((count, *self.shape[1:]), self.dtype)
        content, done = values.reshape(-1).view(np.uint8).data, 0
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
        while done < len(content):
            position = self._offset + start * self.row_bytes + done
            read = os.preadv(self._descriptor, [content[done:]], position)
            if not read:
                raise DatasetError(
                    f"{self.path} ends before byte {position}; it was cut after it had been opened"
                )
            done += read
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}


class Hdf5Rows:
    """An array ``[N, ...]`` read through HDF5; each process opens it, since handles survive neither a fork nor a pickle."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        known = prod(shape[1:]) * dtype.itemsize
        # For rows of different lengths, only the stored size of all rows together is known.
        self.row_bytes = max(1, path.stat().st_size // max(1, shape[0])) if dtype.hasobject else known
        self.path, self._name = path, name
        self._dataset: h5py.Dataset | None = None
        self._process = 0

    def __getitem__(self, rows: slice) -> Array:
        with h5_errors(f"{self.path}: {self._name}"):
            if self._dataset is None or self._process != os.getpid():
                self._dataset = _required(open_h5(self.path), self.path, self._name)
                self._process = os.getpid()
            values: Array = self._dataset[rows]
        # Fixed-length bytes would lose their trailing zeros.
        return values.view(f"V{values.dtype.itemsize}") if values.dtype.kind == "S" else values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}


def _required(file: "h5py.File", path: Path, name: str) -> "h5py.Dataset":
    dataset = find_dataset(file, path, name, linked=True)
    if dataset is None:
        raise DatasetError(f"{path} has no array {name!r} any more")
    return dataset


def _is_contiguous(dataset: "h5py.Dataset") -> bool:
    """Return whether the array is stored in one piece, as the bytes of a numpy type."""
    import h5py

    if dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS or dataset.id.get_offset() is None:
        return False
    if dataset.dtype.kind not in "buif" or not prod(dataset.shape):
        return False
    # numpy has no numbers that use fewer bits than they occupy, or that have padding.
    return bool(dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype, logical=True)))
