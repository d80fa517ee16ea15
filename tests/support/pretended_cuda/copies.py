"""Copies between the host and a device, and between devices."""

from typing import Any

import torch
from torch import Tensor

from .machine import Machine
from .streams import PendingCopy, StreamState, dispatch_off, merge
from .tensors import DeviceTensor, is_pinned, pin


def new_tensor(values: Tensor, device: int, stream: StreamState) -> DeviceTensor:
    """Return a tensor that the latest kernel of `stream` has written."""
    tensor = DeviceTensor(values, device, None, stream)
    tensor.allocation.use(stream, write=True)
    return tensor


def convert(machine: Machine, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Run ``aten._to_copy``: another device, type or memory format.

    Args:
        machine: the machine.
        source: a tensor of the host or of a device; one of the two sides is a device.
        kwargs: those of the operation.
    """
    dtype = kwargs.get("dtype") or source.dtype
    options = {name: kwargs[name] for name in ("memory_format",) if kwargs.get(name) is not None}
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    non_blocking = bool(kwargs.get("non_blocking"))
    if isinstance(source, DeviceTensor) and target is not None and target.type != "cuda":
        with dispatch_off():
            values = source.values.to(target, dtype, copy=True, **options)
        return values if target.type == "meta" else _to_host(machine, source, values, non_blocking)
    device = source.get_device() if target is None else machine.device_index(target)
    is_same = isinstance(source, DeviceTensor) and (device, dtype) == (source.get_device(), source.dtype)
    if is_same and target is not None and not options:
        # C++ compares the device with `meta`, and asks for a copy where CUDA would not.
        with torch.inference_mode(torch.is_inference_mode_enabled() and source.is_inference()):
            return DeviceTensor(source.values, device, source.allocation)
    with dispatch_off():
        values = (source.values if isinstance(source, DeviceTensor) else source).to(
            dtype, copy=True, **options
        )
    stream = machine.launch(device, "aten._to_copy")
    if isinstance(source, DeviceTensor):
        _read_from(machine, source, stream)
    else:
        _count_upload(machine, source, stream, non_blocking)
    return new_tensor(values, device, stream)


def copy_into(machine: Machine, target: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
    """Run ``aten.copy_``, where one of the two tensors is on a device."""
    if isinstance(target, DeviceTensor):
        stream = machine.launch(target.get_device(), "aten.copy_")
        target.allocation.use(stream, write=True)
        values = source
        if isinstance(source, DeviceTensor):
            _read_from(machine, source, stream)
            values = source.values
        else:
            _count_upload(machine, source, stream, non_blocking)
        with dispatch_off():
            target.values.copy_(values)
        return target
    assert isinstance(source, DeviceTensor)
    with dispatch_off():
        values = source.values.to(target.dtype, copy=True)
    stream = _count_download(machine, source)
    if non_blocking and is_pinned(target):
        machine.add_pending(PendingCopy.begin(target, values, stream))
        return target
    with dispatch_off():
        target.copy_(values)
    machine.wait_for_stream(stream, "copy to the host")
    return target


def _to_host(machine: Machine, source: DeviceTensor, values: Tensor, non_blocking: bool) -> Tensor:
    stream = _count_download(machine, source)
    if not non_blocking:
        machine.wait_for_stream(stream, "copy to the host")
        return values
    with dispatch_off():
        host = pin(torch.empty_like(values))
    machine.add_pending(PendingCopy.begin(host, values, stream))
    return host


def _count_download(machine: Machine, source: DeviceTensor) -> StreamState:
    stream = machine.launch(source.get_device(), "copy to the host")
    source.allocation.use(stream, write=False)
    machine.counts.bytes_to_host += source.values.nbytes
    return stream


def _read_from(machine: Machine, source: DeviceTensor, stream: StreamState) -> None:
    """Let a stream read a tensor; a copy between devices makes their two streams wait for each other, as torch does."""
    other = machine.current_stream(source.get_device())
    if other.device != stream.device:
        merge(stream.clock, other.moment())
    source.allocation.use(stream, write=False)
    if other.device != stream.device:
        merge(other.clock, stream.moment())


def _count_upload(machine: Machine, source: Tensor, stream: StreamState, non_blocking: bool) -> None:
    machine.counts.bytes_to_device += source.nbytes
    if not (non_blocking and is_pinned(source)):  # CUDA waits for pageable memory, whatever was asked
        machine.wait_for_stream(stream, "copy from the host")
