"""Hand batches over from a worker process, through its socket.

torch's own loader hands tensors over in /dev/shm. A container has 64 MB there by default; a batch that did not fit was lost
without an error, and the run waited for it for ever. A socket needs neither shared memory nor an open file for each tensor.
"""

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.extraction.decoding.batch import ImageBatch

_Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, stride and type of a tensor without gaps."""


@dataclass(frozen=True)
class _Header:
    """All of a batch but its pixels, and how these lie in memory."""

    plain: _Layout
    views: dict[str, _Layout]
    content: npt.NDArray[np.uint8]
    failures: list[tuple[int, str]]
    facts: npt.NDArray[np.int64]
    unavailable: list[str]


def send(connection: "Connection", outcome: ImageBatch | Exception) -> None:
    """Send a batch, or the error that was raised instead.

    Raises:
        ConnectionError: the other end is closed.
    """
    if isinstance(outcome, Exception):
        connection.send(outcome)
        return
    images, content, failures, facts, unavailable, views = outcome
    layouts = {name: _layout(values) for name, values in views.items()}
    connection.send(_Header(_layout(images), layouts, content.numpy(), failures, facts.numpy(), unavailable))
    for values in (images, *views.values()):
        rest = _bytes_of(values)
        while rest:
            rest = rest[os.write(connection.fileno(), rest) :]


def receive(connection: "Connection", pin: bool) -> ImageBatch | Exception:
    """Return what `send` sent at the other end.

    Args:
        connection: this end.
        pin: put the pixels into pinned memory, from which a GPU copies while it computes.

    Raises:
        EOFError, ConnectionError: the other end is closed, perhaps in the middle of a batch.
    """
    header = connection.recv()
    if not isinstance(header, _Header):
        return header if isinstance(header, Exception) else TypeError(f"unexpected message {header!r}")
    images = _receive_pixels(connection, header.plain, pin)
    views = {name: _receive_pixels(connection, layout, pin) for name, layout in header.views.items()}
    content, facts = torch.from_numpy(header.content), torch.from_numpy(header.facts)
    return ImageBatch(images, content, header.failures, facts, header.unavailable, views)


def _receive_pixels(connection: "Connection", layout: _Layout, pin: bool) -> Tensor:
    shape, stride, dtype = layout
    pixels = torch.empty_strided(shape, stride, dtype=dtype, pin_memory=pin)
    rest = _bytes_of(pixels)
    while rest:
        count = os.readv(connection.fileno(), [rest])
        if not count:
            raise EOFError
        rest = rest[count:]
    return pixels


def _layout(values: Tensor) -> _Layout:
    return tuple(values.shape), values.stride(), values.dtype


def _bytes_of(images: Tensor) -> memoryview:
    """The memory of a tensor without gaps, in whatever order its axes lie."""
    flat = images.as_strided((images.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data
