"""Buffers that are used again: fresh memory is slow to touch, since the system hands it out page by page, cleared.

A buffer holds what it held until the same name is asked for again in the same thread.
"""

import threading
from typing import Any

import torch
from torch import Tensor


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.by_key: dict[Any, Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, numel: int, like: Tensor) -> Tensor:
    """Return a buffer of `numel` elements, of the type and on the device of `like`, with anything in it."""
    key = (name, like.dtype, like.device)
    held = _buffers.by_key.get(key)
    if held is None or len(held) < numel:
        with torch.inference_mode(False):  # what a prediction makes, training may use
            held = _buffers.by_key[key] = torch.empty(numel, dtype=like.dtype, device=like.device)
    return held[:numel]


def release() -> None:
    """Give back the buffers of this thread."""
    _buffers.by_key.clear()
