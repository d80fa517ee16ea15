"""In what precision the matrix products of a training run."""

from contextlib import AbstractContextManager, nullcontext

import torch

from featcache.store.requests import AUTO

FP32 = "fp32"
BF16 = "bf16"


def choose_precision(name: str, device: torch.device) -> str:
    """Return ``fp32`` or ``bf16``; ``auto`` takes bfloat16 where the device multiplies it faster."""
    if name != AUTO:
        return name
    if device.type == "cpu":
        units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return BF16 if any(getattr(torch.cpu, unit, lambda: False)() for unit in units) else FP32
    # Without tensor cores for bfloat16, torch imitates it.
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return BF16 if fast else FP32


def products(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which matrix products run in `precision`; everything else stays float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == BF16 else nullcontext()
