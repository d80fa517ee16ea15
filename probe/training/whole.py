"""Heads that look at all samples at once, by formula or by the exact solver, and whether that is possible."""

from typing import TYPE_CHECKING

import torch

from featcache.probe.request import CLOSED, EXACT, Job
from featcache.store.errors import RequestError
from featcache.store.reading.machine import available_memory

if TYPE_CHECKING:
    from featcache.probe.heads.closed import ClosedHead

# Memory at the peak of a fit by the exact solver for each value of the features; see `ClosedHead.bytes_per_value`.
EXACT_BYTES_PER_VALUE = 20


def check_whole(job: Job, num_samples: int, width: int, device: torch.device) -> None:
    """Refuse a head that sees all features at once where they are too many for its method or for the memory.

    Args:
        job: any; heads that are trained in mini-batches pass.
        num_samples: N, of train.
        width: D.
        device: where the head is fitted.

    Raises:
        RequestError: saying what to ask for instead.
    """
    if job.solver not in (CLOSED, EXACT):
        return
    features, each = job.selection.num_tokens * width, EXACT_BYTES_PER_VALUE
    if job.solver == CLOSED:
        head_class: type[ClosedHead] = job.head.load()
        head_class.check_size(num_samples, features)
        each = head_class.bytes_per_value
    needed = num_samples * features * each
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > free:
        raise RequestError(
            f"{job.head.name} needs the features of all {num_samples:,} samples in memory, about {needed / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB are free; ask for fewer layers, or for a head that is trained in mini-batches, such as linear"
        )
