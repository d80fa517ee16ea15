"""Peak memory of a computation, measured by running it."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


def measure_peak(device: torch.device, run: Callable[[], object]) -> int:
    """Run a function and return the most bytes of tensors on `device` that existed at once, beyond those from before.

    CUDA's allocator counts, rounded to its blocks and with the workspaces of libraries. On other devices the storages that operations
    return are counted, without what an operation allocates and frees in C++.
    """
    if device.type == "cuda":
        before = int(torch.cuda.memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        run()
        peak = int(torch.cuda.max_memory_allocated(device))
        return peak - before if peak > before else 0
    counter = _StorageCounter(device.type)
    with counter:
        run()
    return counter.peak


class _StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of one type of device that are made by operations and still exist."""

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device_type
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._bytes = 0
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled, and skipping dynamo would import all of it: two seconds in each process.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # A storage from before is not counted, so the inputs are looked at as well.
        known = {_key(leaf) for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self._device_type:
                self._add(leaf, known)
        return result

    def _add(self, tensor: torch.Tensor, known: set[int]) -> None:
        key = _key(tensor)
        if key in self._alive or key in known:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()

        def gone(_: object) -> None:
            self._bytes -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)
        self._bytes += size
        self.peak = max(self.peak, self._bytes)


def _key(tensor: torch.Tensor) -> int:
    """Identify the storage of a tensor while the storage exists."""
    return int(tensor.untyped_storage()._cdata)
