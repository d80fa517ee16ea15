"""Errors of a device during forward passes, as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featcache.devices.memory import is_out_of_memory
from featcache.store.errors import BackboneError
from featcache.store.text import reason

# Older errors of a device have no class of their own, so their texts tell.
_DEVICE_FAILED = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS_")
_MIXED_DEVICES = "Expected all tensors to be on the same device"


@contextmanager
def one_line_device_errors(device: torch.device) -> Iterator[None]:
    """Turn an error of the device, or of tensors on different devices, into an error of one line.

    Raises:
        BackboneError: the device failed or disappeared, ran out of memory, or the backbone mixes devices.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if is_out_of_memory(error):
            raise BackboneError(
                f"{device} ran out of memory; free some, or use a smaller --batch-size"
            ) from error
        if isinstance(error, torch.AcceleratorError) or text.startswith(_DEVICE_FAILED):
            raise BackboneError(
                f"{device} failed ({reason(error)}); what was committed is kept: run the same command again, with --device cpu "
                "if the device is gone"
            ) from error
        if _MIXED_DEVICES in text:
            raise BackboneError(
                f"the backbone computes on more devices than {device} ({reason(error)}); a tensor of a custom backbone must "
                "be a parameter or a buffer of its module, so that it moves with the module"
            ) from error
        raise
