"""Entering and leaving the pretended machine: what is replaced in torch, and restored."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch

from . import machine as machines
from .api import Generator, accelerator_functions, cuda_functions
from .arguments import flatten
from .dispatch import DispatchMode
from .functions import FunctionMode
from .machine import GIBIBYTE, Machine
from .tensors import DeviceTensor, is_pinned, pin_memory

# A forked process (a DataLoader's worker) has no CUDA, as on a machine that has one.
os.register_at_fork(after_in_child=machines.deactivate)


@contextmanager
def pretended_cuda(num_devices: int = 2, capacity_bytes: int = 80 * GIBIBYTE) -> Iterator[Machine]:
    """Pretend CUDA devices in this process, in this thread and in threads that start inside.

    Args:
        num_devices: number of devices.
        capacity_bytes: memory of each device.

    Yields:
        The machine, with its memory, counts, and problems.
    """
    if machines.is_active():
        raise RuntimeError("a CUDA machine is pretended already")
    machine = Machine(num_devices, capacity_bytes)
    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as stack:
        for owner, name, value in _replacements(machine, stack):
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(_parameters_are_replaced())
        machines.activate(machine)
        stack.callback(machines.deactivate)
        stack.enter_context(DispatchMode())
        stack.enter_context(FunctionMode())
        yield machine


def _replacements(machine: Machine, stack: ExitStack) -> Iterator[tuple[Any, str, object]]:
    for name, function in cuda_functions(machine).items():
        yield torch.cuda, name, function
    for name, function in accelerator_functions(machine).items():
        yield torch.accelerator, name, function
    yield torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
    yield torch, "Generator", Generator
    yield torch.Tensor, "pin_memory", pin_memory
    yield torch.Tensor, "is_pinned", is_pinned
    engine = stack.enter_context(ThreadPoolExecutor(1, "autograd-cuda"))
    for name in ("grad", "backward"):
        yield torch.autograd, name, _in_engine(getattr(torch.autograd, name), machine, engine)
    yield threading.Thread, "run", _in_modes(threading.Thread.run)


@contextmanager
def _parameters_are_replaced() -> Iterator[None]:
    """Let ``module.to`` replace parameters: new data in old parameters would lose its class."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _in_modes(run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """Modes belong to a thread: enter them in each new one."""

    @wraps(run)
    def run_in_modes(thread: threading.Thread) -> None:
        with DispatchMode(), FunctionMode():
            run(thread)

    return run_in_modes


def _in_engine(
    function: Callable[..., Any], machine: Machine, engine: ThreadPoolExecutor
) -> Callable[..., Any]:
    """Run the backward pass in a thread of its own, as autograd does for a CUDA device."""

    @wraps(function)
    def backward(*args: Any, **kwargs: Any) -> Any:
        thread = machine.thread
        if thread.in_backward or not any(
            isinstance(value, DeviceTensor) for value in flatten((args, kwargs))
        ):
            return function(*args, **kwargs)
        grad, device, streams = torch.is_grad_enabled(), thread.device, dict(thread.streams)

        def go() -> Any:
            thread.device, thread.streams, thread.in_backward = device, streams, True
            with torch.autograd.set_multithreading_enabled(False), torch.set_grad_enabled(grad):
                return function(*args, **kwargs)

        return engine.submit(go).result()

    return backward
