"""Memory of a device: free bytes, and the errors that mean there are too few."""

import torch

from featcache.store.machine import available_memory

# CUDA's allocator raises an exception of its own class. Other libraries raise a RuntimeError that only its text tells apart.
_OUT_OF_MEMORY = (
    "can't allocate memory",  # the CPU allocator
    "CUDA out of memory",
    "CUDA error: out of memory",  # of the driver: launching a kernel, creating a context or a handle
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device, about; the machine's for devices that share its memory.

    On a GPU, memory that torch's allocator keeps for this process counts as free: the next tensors are made of it.
    """
    if device.type != "cuda":
        return available_memory()
    free, _ = gpu_memory(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def gpu_memory(device: torch.device) -> tuple[int, int]:
    """Return the free and all bytes of a GPU as the driver counts them: what torch's allocator keeps is not free."""
    free, total = torch.cuda.mem_get_info(device)
    return free, total


def release_memory(device: torch.device) -> None:
    """Give the memory that torch's allocator keeps for later tensors back to a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch means that a GPU or the machine ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
