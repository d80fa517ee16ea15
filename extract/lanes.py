"""Forward passes side by side on a CPU, each in a thread with cores of its own.

One pass on all cores waits, at every operation, for the slowest core, and the cores decode images too: that costs a fifth
of the speed on two cores. Passes on cores of their own wait for nobody.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event

import torch
from torch import Tensor, nn

from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward import FeatureExtractor, NumpyBatch
from featcache.extraction.replicas import noise_images, replica
from featcache.extraction.sources.base import Sample
from featcache.store.errors import BackboneError


class PassStoppedError(Exception):
    """A pass ended before it was through, because the run ends."""


class Lanes:
    """Runs passes in as many lanes as there are backbones.

    Args:
        pool: the threads, one a lane.
        backbones: copies of one backbone, one a lane.
        make: the extractor for a copy.
        spare: one more extractor, for explaining what went wrong in a lane.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        backbones: Sequence[Backbone],
        make: Callable[[Backbone], FeatureExtractor],
        spare: FeatureExtractor,
    ) -> None:
        self._pool = pool
        self._free: SimpleQueue[FeatureExtractor] = SimpleQueue()
        self._spare = spare
        self._stopped = Event()
        for backbone in backbones:
            self._free.put(make(backbone))
            for module in backbone.module.modules():
                if isinstance(module, nn.Linear):  # every block has some
                    module.register_forward_pre_hook(self._go_on_or_stop)
        self.at_once = len(backbones)
        """Passes that run at the same time."""

    def start(self, images: Tensor) -> Callable[[], NumpyBatch]:
        """Begin one forward pass as soon as a lane is free; see `FeatureExtractor.start`."""
        return self._pool.submit(self._run, images).result

    def explain(self, images: Tensor, samples: Sequence[Sample]) -> BackboneError:
        """See `FeatureExtractor.explain`."""
        return self._spare.explain(images, samples)

    def stop(self) -> None:
        """End the passes that are under way at their next layer; their results raise `PassStoppedError`."""
        self._stopped.set()

    def _go_on_or_stop(self, module: nn.Module, inputs: object) -> None:
        if self._stopped.is_set():
            raise PassStoppedError

    def _run(self, images: Tensor) -> NumpyBatch:
        extractor = self._free.get()
        try:
            return extractor.start(images)()
        finally:
            self._free.put(extractor)


@contextmanager
def lane_pool(lanes: int, threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for `lanes` passes, each of which computes with `threads` threads."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        lanes, "featcache-forward", initializer=torch.set_num_threads, initargs=(threads,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # The number holds for the thread that sets it, and for threads that begin later.
        torch.set_num_threads(before)


def replicas(backbone: Backbone, count: int) -> list[Backbone] | None:
    """Copies of a backbone, one a lane; None if it cannot be copied, as may be with a module of the user's own."""
    images = noise_images(backbone, torch.device("cpu"), 1)
    try:
        copies = [replica(backbone) for _ in range(count)]
        calls = [_calls(one, images) for one in (backbone, copies[0])]
    except Exception:  # whatever such a module may raise
        return None
    # A copy whose pass still runs modules of the original would never reach its own taps.
    return copies if calls[0] == calls[1] else None


@torch.inference_mode()
def _calls(backbone: Backbone, images: Tensor) -> list[str]:
    """Names of the modules that a pass runs, in order."""
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
