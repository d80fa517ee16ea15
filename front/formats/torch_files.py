"""Tensors that torch saved, read without unpickling anything but tensors."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.store.errors import DatasetError
from featcache.store.reading.chunks import Array

if TYPE_CHECKING:
    import torch


_ERRORS = (
    *(RuntimeError, pickle.UnpicklingError, ValueError, EOFError, OSError, KeyError, IndexError),
    *(AttributeError, TypeError, AssertionError),
)
"""Errors that `torch.load` raises for files that are damaged or hold something else."""


@dataclass(frozen=True)
class TensorRows:
    """A tensor ``[N, ...]``, mapped from its file; see `featcache.store.convert.rows.RowArray`."""

    where: str
    tensor: "torch.Tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, N first."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """Name of the type, such as ``bfloat16``."""
        return str(self.tensor.dtype).removeprefix("torch.")

    def rows(self, start: int, stop: int) -> Array:
        """Read some rows; bfloat16 as its uint16 bits."""
        import torch

        values = self.tensor[start:stop].contiguous()
        if values.dtype == torch.bfloat16:
            return values.view(torch.int16).numpy().view("<u2")
        return values.numpy()


def open_tensor(path: Path) -> TensorRows:
    """Map a file that holds one tensor.

    Raises:
        DatasetError: it cannot be read, or holds something else.
    """
    import torch  # seconds: only who imports such files pays

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(
            f"{path} cannot be read as a tensor ({reason}); save it again with torch.save(tensor, path)"
        ) from None
    if not isinstance(tensor, torch.Tensor):
        held = f"a {type(tensor).__name__}" + (
            f" with {', '.join(map(str, list(tensor)[:8]))}" if isinstance(tensor, dict) else ""
        )
        raise DatasetError(f"{path} must hold one tensor, it holds {held}")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise DatasetError(f"{path} holds a sparse or quantized tensor; save it as a plain one")
    # A view of a small storage may be expanded to any size.
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise DatasetError(
            f"{path} holds a tensor of {list(tensor.shape)}, of which not all is stored; save it with tensor.contiguous()"
        )
    return TensorRows(str(path), tensor.detach())
