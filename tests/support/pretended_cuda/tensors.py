"""Tensors on a pretended device."""

from typing import Any

import torch
from torch import Tensor

from .machine import Allocation, active_machine
from .streams import StreamState, dispatch_off


class DeviceTensor(Tensor):
    """A tensor that reports ``cuda:N``; its values lie in a CPU tensor that nothing else can reach.

    In C++ the device is ``meta``, with the dispatch keys of CUDA: autograd then needs no driver, and autocast works.

    Args:
        values: the values.
        device: index of the device.
        allocation: the memory, if this is a view of memory that is allocated already.
        stream: the stream to allocate on; by default the current one of the device.
    """

    values: Tensor
    allocation: Allocation
    is_cuda, is_meta, is_cpu = True, False, False

    @staticmethod
    def __new__(
        cls,
        values: Tensor,
        device: int,
        allocation: Allocation | None = None,
        stream: StreamState | None = None,
    ) -> "DeviceTensor":
        num_bytes = values.untyped_storage().nbytes()
        with dispatch_off():
            shell = torch.empty(num_bytes // values.element_size(), dtype=values.dtype, device="meta")
            shell = shell.as_strided(values.size(), values.stride(), values.storage_offset())
            tensor = torch.Tensor._make_subclass(
                cls, shell, False, device_for_backend_keys=torch.device("cuda", device)
            )
        tensor.values = values
        if allocation is None:
            machine = active_machine()
            allocation = Allocation(machine, device, num_bytes, stream or machine.current_stream(device))
        tensor.allocation = allocation
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .dispatch import run  # which makes tensors of this class

        return run(func, args, kwargs or {})

    # Methods that torch answers from C++, where the device is `meta`.

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.allocation.device)

    def get_device(self) -> int:
        return self.allocation.device

    def cpu(self, memory_format: Any = None) -> Tensor:
        return self.to("cpu")

    def cuda(self, device: Any = None, non_blocking: bool = False, memory_format: Any = None) -> Tensor:
        target = torch.device("cuda", active_machine().device_index(device))
        return self.to(target, non_blocking=non_blocking)

    def new_tensor(
        self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        return torch.tensor(
            data, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad
        )

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def record_stream(self, stream: Any) -> None:
        self.allocation.recorded.add(stream.state.key)

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"DeviceTensor({self.values!r}, device='{self.device}')"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = copied
        copied_tensor: Tensor = memo[id(self)]
        return copied_tensor


def storage_address(tensor: Tensor) -> int:
    """Return the address of a CPU tensor's storage, which its views share."""
    return tensor.untyped_storage().data_ptr()


def pin(tensor: Tensor) -> Tensor:
    """Mark the memory of a CPU tensor as pinned, and return the tensor."""
    tensor.untyped_storage().is_pretended_pinned = True  # type: ignore[attr-defined]
    return tensor


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Return whether a CPU tensor lies in memory that was marked as pinned."""
    return getattr(tensor.untyped_storage(), "is_pretended_pinned", False)


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    """Copy a CPU tensor to pinned memory, unless it lies there."""
    if is_pinned(tensor):
        return tensor
    with dispatch_off():
        return pin(tensor.clone())
