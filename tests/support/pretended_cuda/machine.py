"""State of the pretended machine: devices, memory, counters, and the problems found."""

import threading
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from .streams import Clock, PendingCopy, StreamKey, StreamState, merge

GIBIBYTE = 2**30
GRANULARITY_BYTES = 512
"""CUDA's caching allocator rounds every request up to a multiple of this."""
_SKIPPED_FRAMES = (str(Path(__file__).parent), "/torch/")


class Problem(NamedTuple):
    """A fault in device code that a GPU would not report, or only sometimes."""

    kind: str
    """``race`` or ``freed in use``."""
    text: str
    place: str
    """File and line of the first caller outside torch."""


@dataclass
class Counts:
    """Work since the last reset."""

    kernels: int = 0
    bytes_to_device: int = 0
    bytes_to_host: int = 0
    host_waits: Counter[str] = field(default_factory=Counter)
    """Waits of the host for a device, by reason."""
    operations: Counter[str] = field(default_factory=Counter)
    """Kernels by the name of the operation."""


@dataclass
class DeviceMemory:
    """Memory of one device, as its caching allocator counts it."""

    capacity_bytes: int
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    """Allocated bytes, and bytes that the allocator keeps after they were freed."""
    peak_bytes: int = 0

    def take(self, num_bytes: int, device: int) -> None:
        """Allocate.

        Raises:
            torch.OutOfMemoryError: the device has less than `num_bytes` left.
        """
        if self.allocated_bytes + num_bytes > self.capacity_bytes:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {num_bytes / 2**20:.2f} MiB. GPU {device} has a total "
                f"capacity of {self.capacity_bytes / GIBIBYTE:.2f} GiB (pretended)"
            )
        self.allocated_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        self.reserved_bytes = max(self.reserved_bytes, self.allocated_bytes)


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, StreamState] = {}
        """Current stream by device, where it is not the default one."""
        self.host_clock: Clock = {}
        """Work that this thread has waited for."""
        self.generator = "cpu"
        """Device of the generator of the call that is under way."""
        self.in_backward = False


class Machine:
    """A pretended machine with CUDA devices.

    Args:
        num_devices: number of devices.
        capacity_bytes: memory of each device.
    """

    def __init__(self, num_devices: int, capacity_bytes: int) -> None:
        self.memory = [DeviceMemory(capacity_bytes) for _ in range(num_devices)]
        self.counts = Counts()
        self.problems: list[Problem] = []
        self.thread = _ThreadState()
        self.lock = threading.RLock()
        self._streams: dict[StreamKey, StreamState] = {}
        self._pending: list[PendingCopy] = []

    @property
    def num_devices(self) -> int:
        """Number of devices."""
        return len(self.memory)

    def device_index(self, device: object) -> int:
        """Return the index of `device`; that of the current device where it names none.

        Raises:
            RuntimeError: the machine has no such device.
        """
        if device is None:
            return self.thread.device
        index = device if isinstance(device, int) else torch.device(device).index  # type: ignore[call-overload]
        if index is None:
            return self.thread.device
        if not 0 <= index < self.num_devices:
            raise RuntimeError("CUDA error: invalid device ordinal (pretended)")
        return index

    def stream(self, device: int, index: int) -> StreamState:
        """Return a stream; index 0 is the default stream of the device."""
        with self.lock:
            return self._streams.setdefault((device, index), StreamState(device, index))

    def new_stream(self, device: int) -> StreamState:
        """Make another stream."""
        with self.lock:
            return self.stream(device, 1 + max((i for d, i in self._streams if d == device), default=0))

    def current_stream(self, device: int) -> StreamState:
        """Return the stream on which this thread launches work."""
        return self.thread.streams.get(device) or self.stream(device, 0)

    def report(self, kind: str, text: str) -> None:
        """Record a problem, once for each place."""
        frames = reversed(traceback.extract_stack())
        places = (
            f"{frame.filename}:{frame.lineno}"
            for frame in frames
            if not any(part in frame.filename for part in _SKIPPED_FRAMES)
        )
        problem = Problem(kind, text, next(places, "?"))
        if problem not in self.problems:
            self.problems.append(problem)

    def launch(self, device: int, operation: str) -> StreamState:
        """Count a kernel on the current stream of a device, and return the stream."""
        stream = self.current_stream(device)
        stream.launched += 1
        self.counts.kernels += 1
        self.counts.operations[operation] += 1
        return stream

    def wait(self, clock: Clock, reason: str) -> None:
        """Let the host wait for the work in `clock`: finished copies to the host become readable."""
        self.counts.host_waits[reason] += 1
        known = self.thread.host_clock
        merge(known, clock)
        with self.lock:
            unfinished = []
            for copy in self._pending:
                if known.get(copy.stream, 0) >= copy.launched:
                    copy.deliver()
                else:
                    unfinished.append(copy)
            self._pending = unfinished

    def wait_for_stream(self, stream: StreamState, reason: str) -> None:
        """Let the host wait for a stream."""
        self.wait(stream.moment(), reason)

    def wait_for_device(self, device: int) -> None:
        """Let the host wait for all streams of a device."""
        clock: Clock = {}
        with self.lock:
            streams = [stream for (owner, _), stream in self._streams.items() if owner == device]
        for stream in streams:
            merge(clock, stream.moment())
        self.wait(clock, "cuda.synchronize")

    def add_pending(self, copy: PendingCopy) -> None:
        """Remember a copy to the host that nobody has waited for."""
        with self.lock:
            self._pending.append(copy)


class Allocation:
    """Memory of a device tensor and of all its views; freed with the last of them."""

    __slots__ = ("__weakref__", "_machine", "device", "num_bytes", "reads", "recorded", "stream", "writes")

    def __init__(self, machine: Machine, device: int, num_bytes: int, stream: StreamState) -> None:
        self._machine, self.device, self.stream = machine, device, stream
        self.num_bytes = 0  # nothing to give back if there is no room
        self.writes: Clock = {}
        self.reads: Clock = {}
        self.recorded: set[StreamKey] = set()
        rounded = -(-num_bytes // GRANULARITY_BYTES) * GRANULARITY_BYTES
        with machine.lock:
            machine.memory[device].take(rounded, device)
        self.num_bytes = rounded

    def use(self, stream: StreamState, write: bool) -> None:
        """Note a read or a write by the latest kernel of `stream`; report a race with other streams."""
        for key in stream.not_waited_for(self.writes):
            done = "writes" if write else "reads"
            self._machine.report(
                "race", f"stream {stream.key} {done} values that stream {key} writes, without a wait"
            )
        if not write:
            self.reads[stream.key] = stream.launched
            return
        for key in stream.not_waited_for(self.reads):
            self._machine.report(
                "race", f"stream {stream.key} overwrites values that stream {key} reads, without a wait"
            )
        self.writes[stream.key] = stream.launched

    def __del__(self) -> None:
        with self._machine.lock:
            self._machine.memory[self.device].allocated_bytes -= self.num_bytes
        host = self._machine.thread.host_clock
        for used in (self.writes, self.reads):
            for key in self.stream.not_waited_for(used):
                if key not in self.recorded and host.get(key, 0) < used[key]:
                    self._machine.report(
                        "freed in use",
                        f"{self.num_bytes} bytes of stream {self.stream.key} are freed while stream {key} uses them, "
                        "without record_stream",
                    )


_machines: list[Machine] = []


def active_machine() -> Machine:
    """Return the machine that is pretended at present.

    Raises:
        RuntimeError: there is none; the tensor outlived its machine, or this is a forked process.
    """
    if not _machines:
        raise RuntimeError("no CUDA machine is pretended here")
    return _machines[-1]


def is_active() -> bool:
    """Return whether a machine is pretended in this process."""
    return bool(_machines)


def activate(machine: Machine) -> None:
    """Make `machine` the active one."""
    _machines.append(machine)


def deactivate() -> None:
    """Forget the active machine."""
    _machines.clear()
