"""Devices: which one, and in what precision the forward pass runs on it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from featcache.store.errors import BackboneError, RequestError
from featcache.store.machine import usable_cpus
from featcache.store.requests import AUTO

# CUDA's allocator raises an exception of its own; what else runs out of memory tells it in the text alone.
_OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")
MAX_WORKERS = 16


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means; ``auto`` takes a GPU where there is one.

    Raises:
        RequestError: there is no such device on this machine.
    """
    if name == AUTO:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # its text has all the kinds that torch was ever built for
        raise RequestError(
            f"device {name!r} cannot be used here (write auto, cpu, cuda, cuda:1 or mps); try --device cpu"
        ) from None
    try:
        torch.ones(1, device=device).item()  # one that has no values, such as `meta`, is none to compute on
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise RequestError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from None
    return device


def bfloat16_units() -> str | None:
    """What multiplies bfloat16 on this CPU faster than float32: ``AMX``, ``AVX512_BF16``, or nothing."""
    for unit, test in (("AMX", "_is_amx_tile_supported"), ("AVX512_BF16", "_is_avx512_bf16_supported")):
        if getattr(torch.cpu, test, lambda: False)():
            return unit
    return None


def fast_precision(device: torch.device) -> str:
    """Return ``mixed`` where the device is fast at it (a GPU, or a CPU with units for bfloat16), else ``fp32``."""
    return "fp32" if device.type == "cpu" and bfloat16_units() is None else "mixed"


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Type of the matrix products in mixed precision: bfloat16, or float16 on a GPU that lacks it."""
    # Torch calls a GPU without bfloat16 units able, because it can do the same without them, slowly.
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


def forward_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context of the forward pass in ``fp32`` or ``mixed`` precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, autocast_dtype(device))


@contextmanager
def exact_convolutions(device: torch.device) -> Iterator[None]:
    """On CUDA, convolutions round to 10 bits by default, in some of their algorithms; not in here."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or in the machine."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """Let what runs out of memory in here end with one clear line.

    Raises:
        BackboneError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise BackboneError(
            f"the backbone does not fit into the memory of {device}; free some, or use a smaller model"
            + ("" if device.type == "cpu" else " or --device cpu")
        ) from error


def default_batch_size(device: torch.device) -> int:
    """Samples in a forward pass: enough to keep the device busy, and a divisor of every block size."""
    return 16 if device.type == "cpu" else 128


def default_workers() -> int:
    """Processes that decode images. On a CPU they share the cores with the forward pass, as the system divides them."""
    return min(MAX_WORKERS, usable_cpus())
