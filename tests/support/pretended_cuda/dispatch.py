"""Operations on pretended tensors: checked as CUDA checks them, then computed on the CPU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .arguments import flatten, map_values
from .copies import convert, copy_into
from .machine import Machine, active_machine, is_active
from .streams import dispatch_off
from .tensors import DeviceTensor, is_pinned, pin, storage_address

# Operations whose result the host must see before it can go on.
WAITING = frozenset(
    {
        "aten.nonzero.default",
        "aten._local_scalar_dense.default",
        "aten.equal.default",
        "aten.masked_select.default",
        "aten._unique2.default",
        "aten.unique_dim.default",
        "aten.bincount.default",
        "aten.repeat_interleave.Tensor",
        "aten._linalg_eigh.default",
        "aten.linalg_qr.default",
        "aten.is_nonzero.default",
        "aten._linalg_check_errors.default",
        "aten.unique_consecutive.default",
        "aten._linalg_svd.default",
        "aten.item.default",
    }
)
# Operations that launch no kernel, besides views.
WITHOUT_KERNEL = frozenset(
    {
        "aten.sym_size.default",
        "aten.empty.memory_format",
        "aten.empty_strided.default",
        "aten.empty_like.default",
        "aten.new_empty.default",
        "aten.new_empty_strided.default",
        "aten._has_compatible_shallow_copy_type.default",
        "aten._unsafe_view.default",
    }
)
# Compound operations that are not taken apart: the parts of two need values, and attention has fused kernels, the CPU's as
# well as CUDA's, which keep no scores.
WHOLE = ("aten.item.default", "aten.is_nonzero.default", "aten.scaled_dot_product_attention.default")
RESHAPED_IN_PLACE = ("squeeze_", "unsqueeze_", "t_", "transpose_")
INDEXING = ("aten.index.", "aten.index_put", "aten._index_put")

_is_compound: dict[str, bool] = {}


class DispatchMode(TorchDispatchMode):
    """Sees operations that make tensors on a device from none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_active():
            return func(*args, **(kwargs or {}))
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation of ATen."""
    machine = active_machine()
    name = str(func)
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if target is not None and target.type == "meta" and name == "aten.scalar_tensor.default":
        return _scalar_for_device(func, args, kwargs)
    args, kwargs = _with_scalars((args, kwargs))
    tensors = [value for value in flatten((args, kwargs)) if isinstance(value, Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    on_host = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    if target is not None and target.type == "meta" and on_device:
        # To C++ the device of a pretended tensor is `meta`; what it makes beside one belongs on that device.
        target = on_device[0].device
        kwargs = {**kwargs, "device": target}
    if not on_device and (target is None or target.type != "cuda"):
        return _on_host(machine, func, args, kwargs)
    if any(tensor.is_meta for tensor in on_host) and name != "aten.copy_.default":
        raise RuntimeError(f"meta and cuda tensors in {name}")
    # In inference mode a compound operation arrives whole: it is taken apart, as happens outside of that mode.
    if _compound(func):
        with DispatchMode():
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    if name == "aten._to_copy.default":
        return convert(machine, args[0], kwargs)
    if name == "aten.copy_.default":
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        return copy_into(machine, args[0], args[1], non_blocking)
    if name == "aten.is_pinned.default":
        return False
    if name == "aten._fused_sdp_choice.default":
        return 0  # the plain implementation: the others look at the device in C++
    if target is not None and target.type != "cuda":  # such as zeros_like(x, device="cpu")
        with dispatch_off():
            return func(*map_values(_values, args), **map_values(_values, kwargs))
    _check_same_device(machine, name, on_device, on_host)
    device = on_device[0].get_device() if target is None else machine.device_index(target)
    return _on_device(machine, func, args, kwargs, device, on_device)


def _on_host(machine: Machine, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation in which no device has a part."""
    name = str(func)
    if name == "aten.is_pinned.default":
        return is_pinned(args[0])
    if name in ("aten._pin_memory.default", "aten.pin_memory.default"):
        with dispatch_off():
            return pin(args[0].clone())
    _check_generator(machine, kwargs, "cpu")
    pinned = bool(kwargs.get("pin_memory"))
    with dispatch_off():
        result = func(*args, **({**kwargs, "pin_memory": False} if pinned else kwargs))
    return pin(result) if pinned else result


def _on_device(
    machine: Machine,
    func: Any,
    args: Any,
    kwargs: dict[str, Any],
    device: int,
    inputs: Sequence[DeviceTensor],
) -> Any:
    """Run an operation on one device."""
    name = str(func)
    _check_generator(machine, kwargs, f"cuda:{device}")
    stream = machine.current_stream(device)
    launches = not func.is_view and name not in WITHOUT_KERNEL
    if launches:
        machine.launch(device, name)
        written = _written(func, args, kwargs)
        for tensor in inputs:
            tensor.allocation.use(stream, id(tensor) in written)
    if name in WAITING or _is_mask(name, args):
        machine.wait_for_stream(stream, name)
    options = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if "device" in kwargs:
        options["device"] = "cpu"
    with dispatch_off():
        result = func(*map_values(_values, args), **map_values(_values, options))
        if func._schema.name.removeprefix("aten::") in RESHAPED_IN_PLACE:
            func(*args, **kwargs)  # the shape of the tensor itself changes too
            return args[0]
    known = {id(tensor.values): tensor for tensor in inputs}
    allocations = {storage_address(tensor.values): tensor.allocation for tensor in inputs}

    def on_device(value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) in known:
            return known.get(id(value), value)
        allocation = allocations.get(storage_address(value)) if value.numel() else None
        # A view is an inference tensor if its base is.
        of_plain_tensor = func.is_view and not inputs[0].is_inference()
        with torch.inference_mode(torch.is_inference_mode_enabled() and not of_plain_tensor):
            made = DeviceTensor(value, device, allocation, stream)
        if allocation is None and launches:
            made.allocation.use(stream, write=True)
        return made

    return map_values(on_device, result)


def _compound(func: Any) -> bool:
    """Return whether an operation is made of others."""
    name = func.name()
    if name not in _is_compound:
        key = "CompositeImplicitAutograd"
        has_parts = torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        _is_compound[name] = has_parts and str(func) not in WHOLE
    return _is_compound[name]


def _check_same_device(
    machine: Machine, name: str, on_device: Sequence[DeviceTensor], on_host: Sequence[Tensor]
) -> None:
    """Refuse operands on several devices, as CUDA does; numbers (tensors without axes) may be on the host.

    Raises:
        RuntimeError: they are.
    """
    message = "Expected all tensors to be on the same device, but found at least two devices"
    devices = sorted({str(tensor.device) for tensor in on_device})
    if len(devices) > 1:
        raise RuntimeError(f"{message}, {devices[0]} and {devices[1]}! ({name})")
    if not devices:
        return
    for tensor in on_host:
        is_index = name.startswith(INDEXING) and tensor.dtype in (torch.int64, torch.bool, torch.uint8)
        if is_index:
            stream = machine.current_stream(on_device[0].get_device())
            machine.wait_for_stream(stream, "indices from the host")
        elif tensor.ndim or tensor.device.type != "cpu":
            raise RuntimeError(f"{message}, {devices[0]} and {tensor.device}! ({name})")


def _check_generator(machine: Machine, kwargs: dict[str, Any], device: str) -> None:
    """Refuse a generator of another device.

    Raises:
        RuntimeError: it is of another one.
    """
    found = machine.thread.generator
    if kwargs.get("generator") is not None and found != device:
        raise RuntimeError(f"Expected a '{device}' device type for generator but found '{found}'")


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> set[int]:
    """Return the ids of the tensors that an operation writes to."""
    written: set[int] = set()
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written.update(id(tensor) for tensor in flatten(value))
    return written


def _is_mask(name: str, args: Any) -> bool:
    """Return whether an operation takes elements by a mask: how many there are, only the device knows."""
    if not name.startswith("aten.index."):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _scalar_for_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Make a number on ``meta``, which C++ does for an operation with a pretended tensor, and keep its value."""
    with dispatch_off():
        made: Tensor = func(*args, **kwargs)
        made.pretended_scalar = torch.scalar_tensor(args[0], dtype=kwargs.get("dtype") or made.dtype)  # type: ignore[attr-defined]
    return made


def _with_scalars(arguments: Any) -> Any:
    return map_values(lambda value: getattr(value, "pretended_scalar", value), arguments)


def _values(value: Any) -> Any:
    """Return the argument with which the CPU computes."""
    if isinstance(value, DeviceTensor):
        return value.values
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value
