"""The head of a ``.npy`` file, held to what is stored behind it: a forged one declares terabytes, or is no Python at all."""

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
    """Where the values of a ``.npy`` file lie, and what they are."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    """The first axis varies fastest."""
    start: int
    """First byte of the values."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return prod(self.shape) * self.dtype.itemsize


def npy_layout(file: IO[bytes], size: int) -> NpyLayout:
    """Read the head of a ``.npy`` file of `size` bytes, from its first byte on; `file` is then at the values.

    Raises:
        ValueError: it is none, holds Python objects, or is shorter than its head says; the message says which.
    """
    form = np.lib.format
    try:
        version = form.read_magic(file)
        if version not in _VERSIONS:
            raise ValueError(f"its format is version {version[0]}.{version[1]}")
        reader = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        with warnings.catch_warnings():  # of what Python 2 wrote
            warnings.simplefilter("ignore")
            shape, fortran, dtype = reader(file)
    except ValueError:
        raise
    except (
        Exception
    ) as error:  # the head is parsed as Python, and what is none raises all that the parser can
        raise ValueError(f"its head cannot be read, {type(error).__name__}") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects; save it as an array of numbers or texts")
    layout = NpyLayout(dtype, tuple(int(n) for n in shape), fortran, file.tell())
    if any(n < 0 for n in layout.shape) or layout.start + layout.num_bytes > size:
        raise ValueError(
            f"its head says {list(layout.shape)} {dtype}, {layout.num_bytes} bytes, and {max(0, size - layout.start)} are there"
        )
    return layout


def read_npy(file: IO[bytes], size: int) -> npt.NDArray[Any]:
    """Read a ``.npy`` file of `size` bytes from its first byte on, of packed ones too.

    Raises:
        ValueError: as for `npy_layout`, or it ends early.
        MemoryError: it does not fit into memory.
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
