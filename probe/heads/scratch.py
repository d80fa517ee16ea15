"""Buffers that are used again: fresh memory is slow to touch, since the system hands it out page by page, cleared.

A buffer holds what it held until the same name is asked for again from the same set of buffers. Each thread has a set. The backward
pass on a GPU runs in a thread of autograd, so its functions use the set of the thread that ran the forward pass: one set to count
and to give back, instead of a second one that nobody reaches.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Buffer:
    tensor: Tensor
    most: int | None


class Buffers:
    """A set of buffers by name, type and device."""

    def __init__(self) -> None:
        self._by_key: dict[Any, _Buffer] = {}

    def take(self, name: str, numel: int, like: Tensor, most: int | None) -> Tensor:
        """Return a buffer; see `scratch`."""
        key = (name, like.dtype, like.device)
        held = self._by_key.get(key)
        if held is None or len(held.tensor) < numel:
            self._by_key.pop(key, None)
            held = None  # the smaller buffer goes before the larger one comes
            with torch.inference_mode(False):  # what a prediction makes, training may use
                held = _Buffer(torch.empty(numel, dtype=like.dtype, device=like.device), most)
            self._by_key[key] = held
        return held.tensor[:numel]

    def sizes(self, device: torch.device) -> dict[str, tuple[int, int | None]]:
        """Return the bytes of the buffers on a device of this type by name, and the bytes that each does not exceed."""
        return {
            f"{name} {dtype}": (held.tensor.nbytes, held.most)
            for (name, dtype, where), held in self._by_key.items()
            if where.type == device.type
        }

    def release(self) -> None:
        """Give back all buffers."""
        self._by_key.clear()


class _Current(threading.local):
    def __init__(self) -> None:
        self.buffers = Buffers()


_current = _Current()


def buffers() -> Buffers:
    """Return the set of buffers that this thread uses."""
    return _current.buffers


@contextmanager
def use(chosen: Buffers) -> Iterator[None]:
    """Let this thread use another set of buffers, whose thread waits in the meantime."""
    before = _current.buffers
    _current.buffers = chosen
    try:
        yield
    finally:
        _current.buffers = before


def scratch(name: str, numel: int, like: Tensor, most: int | None = None) -> Tensor:
    """Return a buffer of `numel` elements, of the type and on the device of `like`, with anything in it.

    Args:
        name: tells buffers apart that are used at the same time.
        numel: number of elements.
        like: has the type and the device.
        most: bytes that the buffer does not exceed however many members train; None where it grows with them.
    """
    return _current.buffers.take(name, numel, like, most)


def release() -> None:
    """Give back the buffers of this thread."""
    _current.buffers.release()
