"""Batch size, decoding processes and memory for a backbone, as far as the machine decides them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featcache.devices.memory import is_out_of_memory
from featcache.store.errors import BackboneError
from featcache.store.machine import usable_cpus

MAX_WORKERS = 16


@contextmanager
def enough_memory(device: torch.device) -> Iterator[None]:
    """Turn running out of memory into an error of one line.

    Raises:
        BackboneError: the block ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise BackboneError(
            f"the backbone does not fit into the memory of {device}; free some, or use a smaller model"
            + ("" if device.type == "cpu" else " or --device cpu")
        ) from error


def default_batch_size(device: torch.device) -> int:
    """Samples in a forward pass: enough to keep the device busy, and a divisor of every block size."""
    return 16 if device.type == "cpu" else 128


def default_workers() -> int:
    """Processes that decode images. On a CPU they share the cores with the forward pass, as the system divides them."""
    return min(MAX_WORKERS, usable_cpus())
