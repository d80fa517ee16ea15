"""Free memory of devices, and errors that mean there is too little."""

import pytest
import torch

from featcache.devices import memory
from featcache.devices.memory import free_memory, is_out_of_memory


def test_what_the_allocator_keeps_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    assert free_memory(torch.device("cuda:1")) == 140


def test_a_cpu_has_what_the_machine_has(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 12345)
    assert free_memory(torch.device("cpu")) == 12345


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB, max allowed: 18.13 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_errors_that_mean_too_little_memory(error):
    assert is_out_of_memory(error)


def test_the_allocator_of_the_cpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**57)  # more than any processor can address
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("CUDA out of memory")],
)
def test_other_errors(error):
    assert not is_out_of_memory(error)
