"""Stand-ins for the parts of ``torch.cuda`` and ``torch.accelerator`` that programs call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .machine import Machine, active_machine
from .streams import Clock, StreamState, merge

NAME = "Pretended GPU"
CAPABILITY = (9, 0)
"""That of an H100, so that bfloat16 counts as fast."""


class Stream:
    """A stream, as `torch.cuda.Stream`."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        machine = active_machine()
        self.state = machine.new_stream(machine.device_index(device))

    @classmethod
    def of(cls, state: StreamState) -> "Stream":
        """Wrap a stream that exists."""
        stream = cls.__new__(cls)
        stream.state = state
        return stream

    @property
    def device(self) -> torch.device:
        """The device that runs the stream."""
        return torch.device("cuda", self.state.device)

    def wait_stream(self, other: "Stream") -> None:
        """Let later work wait for what `other` has been given so far."""
        merge(self.state.clock, other.state.moment())

    def wait_event(self, event: "Event") -> None:
        """Let later work wait for an event."""
        merge(self.state.clock, event.clock)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Record an event at the present end of the stream."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Let the host wait for the stream."""
        active_machine().wait_for_stream(self.state, "stream.synchronize")

    def query(self) -> bool:
        """Return True: work finishes at once, only the host does not know."""
        return True


class Event:
    """An event, as `torch.cuda.Event`; all times are zero."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        """Record the present end of a stream; by default that of the current device."""
        machine = active_machine()
        state = machine.current_stream(machine.thread.device) if stream is None else stream.state
        self.clock = state.moment()

    def wait(self, stream: Stream | None = None) -> None:
        """Let a stream wait for the event."""
        (stream or torch.cuda.current_stream()).wait_event(self)

    def synchronize(self) -> None:
        """Let the host wait for the event."""
        active_machine().wait(self.clock, "event.synchronize")

    def query(self) -> bool:
        """Return True, as a stream does."""
        return True

    def elapsed_time(self, other: "Event") -> float:
        """Return 0: a pretended device has no speed."""
        return 0.0


class Generator(torch.Generator):
    """A generator that reports a pretended device; its numbers are those of the CPU."""

    def __new__(cls, device: object = "cpu") -> "Generator":
        generator = super().__new__(cls, "cpu")
        kind = torch.device(device).type  # type: ignore[call-overload]
        generator.pretended = "cpu" if kind == "cpu" else f"cuda:{active_machine().device_index(device)}"
        return generator

    def manual_seed(self, seed: int) -> "Generator":
        """Seed, and return this generator with its class."""
        super().manual_seed(seed)
        return self

    @property
    def device(self) -> torch.device:
        """The pretended device."""
        return torch.device(self.pretended)


class Properties:
    """Properties of a device, as far as torch and featcache read them."""

    name = NAME
    major, minor = CAPABILITY
    multi_processor_count = 132

    def __init__(self, total_memory: int) -> None:
        self.total_memory = total_memory


@contextmanager
def use_device(device: object) -> Iterator[None]:
    """Make a device the current one of this thread."""
    machine = active_machine()
    before = machine.thread.device
    machine.thread.device = before if device is None else machine.device_index(device)
    try:
        yield
    finally:
        machine.thread.device = before


@contextmanager
def use_stream(stream: Stream | None) -> Iterator[None]:
    """Make a stream the current one of its device, and its device the current one."""
    if stream is None:
        yield
        return
    streams, state = active_machine().thread.streams, stream.state
    before = streams.get(state.device)
    streams[state.device] = state
    try:
        with use_device(state.device):
            yield
    finally:
        if before is None:
            del streams[state.device]
        else:
            streams[state.device] = before


def cuda_functions(machine: Machine) -> dict[str, object]:
    """Return the attributes of ``torch.cuda`` to replace, by name."""

    def memory(device: object) -> object:
        return machine.memory[machine.device_index(device)]

    def set_device(device: object) -> None:
        machine.thread.device = machine.device_index(device)

    def reset_peak(device: object = None) -> None:
        memory(device).peak_bytes = memory(device).allocated_bytes

    def empty_cache() -> None:
        for device in machine.memory:
            device.reserved_bytes = device.allocated_bytes

    def mem_get_info(device: object = None) -> tuple[int, int]:
        found = memory(device)
        return found.capacity_bytes - found.reserved_bytes, found.capacity_bytes

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: machine.num_devices,
        "current_device": lambda: machine.thread.device,
        "set_device": set_device,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": lambda device=None: Properties(memory(device).capacity_bytes),
        "mem_get_info": mem_get_info,
        "memory_allocated": lambda device=None: memory(device).allocated_bytes,
        "memory_reserved": lambda device=None: memory(device).reserved_bytes,
        "max_memory_allocated": lambda device=None: memory(device).peak_bytes,
        "reset_peak_memory_stats": reset_peak,
        "empty_cache": empty_cache,
        "synchronize": lambda device=None: machine.wait_for_device(machine.device_index(device)),
        "Stream": Stream,
        "Event": Event,
        "stream": use_stream,
        "device": use_device,
        "current_stream": lambda device=None: Stream.of(machine.current_stream(machine.device_index(device))),
        "default_stream": lambda device=None: Stream.of(machine.stream(machine.device_index(device), 0)),
    }


def accelerator_functions(machine: Machine) -> dict[str, Callable[..., object]]:
    """Return the attributes of ``torch.accelerator`` to replace, by name."""

    def set_device_index(device: object) -> None:
        machine.thread.device = machine.device_index(device)

    return {
        "is_available": lambda: True,
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_device_index": lambda: machine.thread.device,
        "device_count": lambda: machine.num_devices,
        "set_device_index": set_device_index,
    }
