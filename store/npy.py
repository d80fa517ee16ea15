"""Read ``.npy`` headers, and check them against the stored bytes: a forged header may declare terabytes, or not parse."""

import warnings
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np
import numpy.typing as npt

_VERSIONS = ((1, 0), (2, 0))
_STEP_BYTES = 2**24


@dataclass(frozen=True)
class NpyLayout:
    """Offset, type and shape of the values of a ``.npy`` file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    """True if the first axis varies fastest."""
    start: int
    """Offset of the values in bytes."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a ``.npy`` file from its first byte on: shape, Fortran order, type; leave `file` at the values.

    Raises:
        ValueError: the file is no ``.npy`` file; the message says why.
    """
    form = np.lib.format
    try:
        version = form.read_magic(file)
        if version not in _VERSIONS:
            raise ValueError(f"its format is version {version[0]}.{version[1]}")
        reader = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        with warnings.catch_warnings():  # numpy warns of headers from Python 2
            warnings.simplefilter("ignore")
            shape, fortran, dtype = reader(file)
    except ValueError:
        raise
    except (
        Exception
    ) as error:  # the header is parsed as Python, and damaged ones raise any error of the parser
        raise ValueError(f"its head cannot be read, {type(error).__name__}") from None
    return tuple(int(n) for n in shape), fortran, dtype


def npy_layout(file: IO[bytes], size: int) -> NpyLayout:
    """Read the header of a ``.npy`` file of `size` bytes, from its first byte on; leave `file` at the values.

    Raises:
        ValueError: the file is no ``.npy`` file, holds Python objects, or is shorter than declared; the message says which.
    """
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save it as an array of numbers or texts")
    layout = NpyLayout(dtype, shape, fortran, file.tell())
    if any(n < 0 for n in layout.shape) or layout.start + layout.num_bytes > size:
        raise ValueError(
            f"its head says {list(layout.shape)} {dtype}, {layout.num_bytes} bytes, and {max(0, size - layout.start)} are there"
        )
    return layout


def read_npy(file: IO[bytes], size: int) -> npt.NDArray[Any]:
    """Read a ``.npy`` file of `size` unpacked bytes, from its first byte on; `file` may unpack a compressed one.

    Raises:
        ValueError: as for `npy_layout`, or the file ends early.
        MemoryError: the array does not fit into memory.
    """
    layout = npy_layout(file, size)
    values = np.empty(layout.num_bytes, np.uint8)
    view, done = values.data, 0
    while done < layout.num_bytes:
        part = file.read(min(_STEP_BYTES, layout.num_bytes - done))
        if not part:
            raise ValueError(f"it ends after {done} of {layout.num_bytes} bytes")
        view[done : done + len(part)] = part
        done += len(part)
    if not layout.num_bytes:
        return np.empty(layout.shape, layout.dtype)
    return values.view(layout.dtype).reshape(layout.shape, order="F" if layout.fortran else "C")
