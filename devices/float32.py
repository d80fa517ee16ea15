"""Float32 products with all 24 bits of the mantissa, whatever the program around allows.

A program may let float32 matrix products and convolutions round their operands to 11 bits (TF32, on GPUs since Ampere) or 8 bits
(bfloat16, on CPUs): by ``torch.backends.cuda.matmul.allow_tf32``, ``torch.set_float32_matmul_precision`` or a ``fp32_precision``
of ``torch.backends``. cuDNN's convolutions use TF32 by default. Features would then depend on the program that calls featcache,
and their key says fp32.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

_EXACT = "ieee"
_INHERITED = "none"


def _operations() -> list[Any]:
    """Every object of torch that holds the precision of one operation of one library."""
    cuda, cudnn, cpu = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]  # type: ignore[attr-defined]


class _Pin:
    """The settings of the process while at least one thread needs exact products.

    Replicas of a backbone run in threads. The first one to enter saves the settings and the last one to leave restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._restore: list[Callable[[], None]] = []

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                # Read before the older settings change them, restored after these are.
                found = [operation.fp32_precision for operation in _operations()]
                self._restore = _pin_older_settings()
                for operation, precision in zip(_operations(), found, strict=True):
                    operation.fp32_precision = _EXACT
                    self._restore.append(partial(_restore_precision, operation, precision))

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for restore in self._restore:
                    restore()


_process = _Pin()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 products exactly inside the block or the decorated function; the settings are restored after it.

    The settings belong to the process, so other threads of the program compute exactly as well in the meantime.
    """
    _process.enter()
    try:
        yield
    finally:
        _process.leave()


def _pin_older_settings() -> list[Callable[[], None]]:
    """Pin the flags that torch had before `fp32_precision`; torch raises where the two disagree and a flag is read.

    Where they disagree already, the program uses `fp32_precision` alone, and the flags stay as they are.
    """
    restore: list[Callable[[], None]] = []
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
        restore.append(lambda: torch.set_float32_matmul_precision(matmul))
        torch.set_float32_matmul_precision("highest")
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
        restore.append(lambda: setattr(torch.backends.cudnn, "allow_tf32", cudnn))
        torch.backends.cudnn.allow_tf32 = False
    return restore


def _restore_precision(operation: Any, precision: str) -> None:
    """Restore what an operation showed; it inherits again what its library or torch as a whole is set to, if that is the same."""
    operation.fp32_precision = _INHERITED
    if operation.fp32_precision != precision:
        operation.fp32_precision = precision
