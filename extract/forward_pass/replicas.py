"""Replicas of a backbone, which run forward passes side by side on a CPU, each in a thread with cores of its own.

A single pass on all cores waits, at every operation, for the slowest core, and the cores decode images too: that costs a
fifth of the speed on two cores. Passes that share no core do not wait for each other.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event

import torch
from torch import Tensor, nn

from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.forward import FeatureExtractor, NumpyBatch
from featcache.extraction.sources.base import Sample
from featcache.store.errors import BackboneError
from featcache.store.machine import usable_cpus

MAX_REPLICAS = 8
"""Largest number of replicas; each needs memory for the activations of a batch."""


class PassStoppedError(Exception):
    """A forward pass was stopped before its last layer, because the run ends."""


class ReplicaExtractor:
    """Runs as many forward passes at a time as there are replicas.

    Args:
        pool: one thread for each replica.
        replicas: replicas of one backbone.
        make: makes the extractor of a replica.
        spare: extractor of the original backbone, which explains errors.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        replicas: Sequence[Backbone],
        make: Callable[[Backbone], FeatureExtractor],
        spare: FeatureExtractor,
    ) -> None:
        self._pool = pool
        self._free: SimpleQueue[FeatureExtractor] = SimpleQueue()
        self._spare = spare
        self._stopped = Event()
        for backbone in replicas:
            self._free.put(make(backbone))
            for module in backbone.module.modules():
                if isinstance(module, nn.Linear):  # every block has some
                    module.register_forward_pre_hook(self._check_stopped)
        self.at_once = len(replicas)
        """Number of passes that run at the same time."""

    def start(self, images: Tensor) -> Callable[[], NumpyBatch]:
        """Begin one forward pass as soon as a replica is free; see `FeatureExtractor.start`."""
        return self._pool.submit(self._run, images).result

    def explain(self, images: Tensor, samples: Sequence[Sample]) -> BackboneError:
        """See `FeatureExtractor.explain`."""
        return self._spare.explain(images, samples)

    def stop(self) -> None:
        """Stop the running passes at their next layer; their results raise `PassStoppedError`."""
        self._stopped.set()

    def _check_stopped(self, module: nn.Module, inputs: object) -> None:
        if self._stopped.is_set():
            raise PassStoppedError

    def _run(self, images: Tensor) -> NumpyBatch:
        extractor = self._free.get()
        try:
            return extractor.start(images)()
        finally:
            self._free.put(extractor)


def replicas_and_threads(device: torch.device) -> tuple[int, int]:
    """Return how many replicas run side by side on a device, and the threads of each; a GPU runs one pass at a time."""
    if device.type != "cpu":
        return 1, 1
    # torch's own number is smaller where somebody limited it.
    cores = min(usable_cpus(), torch.get_num_threads())
    count = min(MAX_REPLICAS, cores)
    return count, cores // count


@contextmanager
def replica_threads(count: int, threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads, one for each replica; torch uses `threads` threads in each."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        count, "featcache-forward", initializer=torch.set_num_threads, initargs=(threads,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # The number holds for the thread that sets it, and for threads that begin later.
        torch.set_num_threads(before)


def replicate(backbone: Backbone, count: int) -> list[Backbone] | None:
    """Return `count` replicas of a backbone; None if it cannot be copied, as may happen with a custom module."""
    images = noise_images(backbone, torch.device("cpu"), 1)
    try:
        replicas = [replica(backbone) for _ in range(count)]
        calls = [_calls(each, images) for each in (backbone, replicas[0])]
    except Exception:  # a custom module may raise anything
        return None
    # A replica whose pass still runs modules of the original would never reach its own taps.
    return replicas if calls[0] == calls[1] else None


def replica(backbone: Backbone) -> Backbone:
    """Copy a backbone, but not its weights: the modules are new, their parameters and buffers are the same tensors.

    Raises:
        Exception: whatever an unusual module raises when it is copied.
    """
    tensors = [*backbone.module.parameters(), *backbone.module.buffers()]
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})


def noise_images(backbone: Backbone, device: torch.device, batch: int) -> Tensor:
    """Return the same random images ``[B, 3, H, W]`` at every call, for comparing passes."""
    return torch.randn(
        batch, backbone.spec.channels, *backbone.spec.image_size, generator=torch.Generator().manual_seed(0)
    ).to(device)


@torch.inference_mode()
def _calls(backbone: Backbone, images: Tensor) -> list[str]:
    """Return the names of the modules that a pass runs, in order."""
    called: list[str] = []
    handles = []
    for name, module in backbone.module.named_modules():

        def note(module: nn.Module, inputs: object, name: str = name) -> None:
            called.append(name)

        handles.append(module.register_forward_pre_hook(note))
    try:
        backbone.forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return called
