"""Order of work on streams, as vector clocks: for each stream, the kernel up to which work is known to have finished."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

StreamKey = tuple[int, int]
"""Device and number of a stream."""
Clock = dict[StreamKey, int]


def merge(into: Clock, other: Clock) -> None:
    """Take over what is later in `other`."""
    for key, launched in other.items():
        into[key] = max(into.get(key, 0), launched)


@dataclass(eq=False)
class StreamState:
    """A stream: the kernels launched on it, and the work of other streams that it waits for."""

    device: int
    index: int
    launched: int = 0
    clock: Clock = field(default_factory=dict)

    @property
    def key(self) -> StreamKey:
        """Device and number."""
        return (self.device, self.index)

    def moment(self) -> Clock:
        """Return the clock of all work launched so far."""
        return {**self.clock, self.key: self.launched}

    def not_waited_for(self, used: Clock) -> list[StreamKey]:
        """Return the other streams in `used` whose work this stream does not wait for."""
        return [
            key for key, launched in used.items() if key != self.key and self.clock.get(key, 0) < launched
        ]


@dataclass(frozen=True)
class PendingCopy:
    """An asynchronous copy into pinned memory that the host has not waited for."""

    host: Tensor
    values: Tensor
    stream: StreamKey
    launched: int

    @classmethod
    def begin(cls, host: Tensor, values: Tensor, stream: StreamState) -> "PendingCopy":
        """Fill `host` with values that no one would take for results, until the copy is delivered."""
        with dispatch_off():
            if host.dtype == torch.bool:
                host.copy_(~values)
            elif host.dtype.is_floating_point:
                host.fill_(float("nan"))
            else:
                host.fill_(-1)
        return cls(host, values, stream.key, stream.launched)

    def deliver(self) -> None:
        """Write the values to the host."""
        with torch.inference_mode(), dispatch_off():
            self.host.copy_(self.values)


def dispatch_off() -> torch._C._DisableTorchDispatch:
    """Return a context in which operations go straight to the CPU."""
    return torch._C._DisableTorchDispatch()
