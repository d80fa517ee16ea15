"""Copies from the host to a device that the host does not wait for."""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor of the host to a device; on CUDA the copy waits in the queue of the current stream, and the host does not."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # A copy from memory that the system may move would be waited for.
    return tensor.pin_memory().to(device, non_blocking=True)


class Receipt:
    """A value of a device on its way to the host, to be read later without a wait for work that was queued after it."""

    def __init__(self, value: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = value
        if value.device.type == "cuda":
            self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(value.device))

    def value(self) -> Tensor:
        """Return the value on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
