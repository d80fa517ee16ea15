"""Precisions of matrix products: their names, and which of them a device multiplies fast.

The forward pass runs in ``fp32``, ``mixed`` (autocast) or ``bf16`` (bfloat16 weights), all part of a cache's key
(`featcache.store.spec`). Training runs in ``fp32`` or ``bf16`` (products under autocast). Torch is imported on demand, since the command line lists the names.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from featcache.store.requests import AUTO
from featcache.store.spec import BF16, FP32, MIXED

if TYPE_CHECKING:
    import torch

__all__ = [
    "BF16",
    "FP32",
    "MIXED",
    "TRAINING_PRECISIONS",
    "autocast_dtype",
    "bfloat16_units",
    "exact_context",
    "fast_precision",
    "forward_context",
    "has_bfloat16_units",
    "products",
    "training_precision",
]

TRAINING_PRECISIONS = (FP32, BF16)

# Compute capability of the first GPUs with tensor cores for bfloat16 (Ampere). Older GPUs are called able by
# `torch.cuda.is_bf16_supported`, because they emulate bfloat16, slowly.
_BFLOAT16_CAPABILITY = (8, 0)


def bfloat16_units() -> str | None:
    """Name the units of this CPU that multiply bfloat16 faster than float32: ``AMX``, ``AVX512_BF16``, or None."""
    import torch

    for unit, test in (("AMX", "_is_amx_tile_supported"), ("AVX512_BF16", "_is_avx512_bf16_supported")):
        if getattr(torch.cpu, test, lambda: False)():
            return unit
    return None


def has_bfloat16_units(device: "torch.device") -> bool:
    """Return whether `device` multiplies bfloat16 faster than float32."""
    import torch

    if device.type == "cpu":
        return bfloat16_units() is not None
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY


def fast_precision(device: "torch.device") -> str:
    """Return the precision of a fast forward pass: ``mixed`` on a GPU or a CPU with units for bfloat16, else ``fp32``."""
    return FP32 if device.type == "cpu" and not has_bfloat16_units(device) else MIXED


def autocast_dtype(device: "torch.device") -> "torch.dtype":
    """Return the type of matrix products in mixed precision: bfloat16, or float16 on a GPU without units for bfloat16."""
    import torch

    return torch.float16 if device.type == "cuda" and not has_bfloat16_units(device) else torch.bfloat16


def forward_context(device: "torch.device", precision: str) -> AbstractContextManager[object]:
    """Return the context of the forward pass in a precision, which can be compiled with the pass; weights have their own type."""
    import torch

    return torch.autocast(device.type, autocast_dtype(device)) if precision == MIXED else nullcontext()


def exact_context(precision: str) -> AbstractContextManager[object]:
    """Return the context around the forward pass, also a compiled one, in which fp32 excludes TF32."""
    from featcache.devices.float32 import exact_float32

    return exact_float32() if precision == FP32 else nullcontext()


def training_precision(name: str, device: "torch.device") -> str:
    """Return ``fp32`` or ``bf16``; ``auto`` takes bfloat16 where the device multiplies it faster."""
    if name != AUTO:
        return name
    return BF16 if has_bfloat16_units(device) else FP32


def products(precision: str, device: "torch.device") -> AbstractContextManager[object]:
    """Return the context of a training in which matrix products run in `precision`; everything else stays float32."""
    import torch

    return torch.autocast(device.type, torch.bfloat16) if precision == BF16 else nullcontext()
