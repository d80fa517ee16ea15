"""Weights of a backbone: reading them from a file, fitting them to a model, and their digest."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from featcache.extraction.models.preprocessing import ALIGNED, ANTIALIASED, OFFSET
from featcache.store.files import JsonObject, sha256_file

AS_STORED = "as stored"
"""Of a position embedding that was not resized; others have one of `POSITION_METHODS`."""


@contextmanager
def without_storage() -> Iterator[None]:
    """Make modules on the meta device, where they have a form and no values: what would fill them is left out."""
    with torch.device("meta"), _SkipInitialization():
        yield


class _SkipInitialization(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Filling a meta tensor does nothing and takes nearly all of the time.
        if args and getattr(func, "__name__", None) in _FILLING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


_FILLING = frozenset(("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_", "div_"))


def state_digest(module: nn.Module) -> str:
    """Return SHA-256 over names, shapes, types and bytes of a module's state, whatever file it was loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # Through uint8, since numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_source(path: Path, choice: Mapping[str, Any]) -> JsonObject:
    """Return the provenance of a local file: its name and digest, never its path, and which of several sets was taken."""
    return {"origin": "file", "file": path.name, "sha256": sha256_file(path), **choice}


def fit_position_embedding(
    stored: Tensor, num_prefix_tokens: int, grid: tuple[int, int], method: str = ANTIALIASED
) -> Tensor:
    """Resize a position embedding ``[1, N, D]`` to a grid, as the model's authors or library do it, but in float64.

    In float32 the last bits depend on the processor, and with them the weights digest and the key of every cache.

    Args:
        stored: the entries of prefix tokens first, then those of a square grid of patches.
        num_prefix_tokens: how many prefix tokens have an entry.
        grid: rows and columns wanted.
        method: one of `POSITION_METHODS`.

    Returns:
        `stored` itself if nothing is to be done.

    Raises:
        ValueError: the stored patches are no square grid.
    """
    num_patches = stored.shape[1] - num_prefix_tokens
    side = math.isqrt(max(num_patches, 0))
    is_square = num_patches >= 1 and side * side == num_patches
    # 16 x 16 entries are as many as 8 x 32, so the number alone does not tell; only a grid that is no square was stored for itself.
    if num_patches == grid[0] * grid[1] and (grid == (side, side) or not is_square):
        return stored
    if not is_square:
        raise ValueError(f"its position embedding of {stored.shape[1]} tokens is of no square image")
    prefix, patches = stored[:, :num_prefix_tokens], stored[:, num_prefix_tokens:]
    # [1, side * side, D] -> [1, D, side, side]
    squares = patches.double().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = _resize_grid(squares, grid, method)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(stored.dtype)], 1)


def _resize_grid(values: Tensor, grid: tuple[int, int], method: str) -> Tensor:
    """Resize ``[1, D, side, side]`` to a grid."""
    if method == ALIGNED:
        return F.interpolate(values, size=grid, mode="bilinear", align_corners=True)
    if method == OFFSET:
        # The authors' way around rounding in the number of patches shifts the positions too, since torch then goes by the factor.
        factors = [(patches + 0.1) / side for patches, side in zip(grid, values.shape[-2:], strict=True)]
        return F.interpolate(values, scale_factor=factors, mode="bicubic", align_corners=False)
    return F.interpolate(
        values, size=grid, mode="bicubic", align_corners=False, antialias=method == ANTIALIASED
    )
