"""Memory that a run takes, inputs and outputs alike, and the check that it is available.

`featcache.probing.training.blocks_memory` counts what is left to take where the features do not fit into memory.

Shapes: N samples, F = T * D features, O outputs, R held-out samples, P penalties.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from featcache.devices.memory import free_memory
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.requests.request import ADAMW, CHOICE, CLOSED_FORM, EXACT, GROUP_LASSO
from featcache.probing.scoring.held_out import OUTPUT_SHARE
from featcache.probing.solver import group_lasso, logistic
from featcache.probing.solver.logistic import BATCH_COLUMNS
from featcache.probing.solver.path_choice import most_steps
from featcache.probing.training.blocks_memory import least_bytes, plan_blocks
from featcache.probing.training.size import Size
from featcache.store.errors import RequestError
from featcache.store.machine import available_memory
from featcache.store.text import format_bytes

if TYPE_CHECKING:
    from featcache.probing.heads.closed_form import ClosedFormHead

# Memory at the peak of a fit by the exact solver for each value of the features; see `ClosedFormHead.bytes_per_value`.
EXACT_BYTES_PER_VALUE = 20
# Float64 copies of the logits, and of the parameters, of penalties that are solved side by side.
EXACT_LOGITS, EXACT_PARAMETERS = 6, 20
# Float32 copies of outputs that exist at once. On test: outputs and probabilities. On held-out samples: the best trained member and
# the one compared with it; for `auto`, up to six candidates, and the three that are averaged.
TEST_COPIES = 2
HELD_OUT_COPIES = {ADAMW: 2, CHOICE: 9}


def bytes_needed(job: HeadJob, size: Size, memory: int) -> int:
    """Return the peak memory of a choice and a fit, for closed-form heads and the exact solver.

    Args:
        job: a job with such a head.
        size: sizes of the data.
        memory: bytes; beyond a share of these, the outputs of all settings for single labels are not kept.
    """
    features = job.selection.num_tokens * size.width
    if job.solver == EXACT:
        return _exact_bytes(size, features, group_lasso.GRID if job.penalty == GROUP_LASSO else logistic.GRID)
    head_class: type[ClosedFormHead] = job.head.load()
    outputs = 4 * size.num_held_out * size.num_outputs
    kept = len(head_class.grid(size.num_samples)) * outputs
    # The chosen outputs exist twice during calibration.
    fitting = head_class.bytes_needed(size.num_samples, features, size.num_outputs)
    return fitting + 2 * outputs + min(kept, memory // OUTPUT_SHARE)


def _exact_bytes(size: Size, num_features: int, grid: Sequence[float]) -> int:
    outputs, penalties = size.num_outputs, len(grid)
    tried = penalties + most_steps(grid)
    together = max(outputs, BATCH_COLUMNS.get("cpu", 64))  # columns that are solved side by side
    dimensions = min(size.num_samples, num_features)
    return (
        EXACT_BYTES_PER_VALUE * size.num_samples * num_features
        + 8 * EXACT_LOGITS * together * size.num_samples
        + 8 * EXACT_PARAMETERS * together * dimensions
        # Float64 logits of the default path on held-out samples; outputs and parameters of all penalties that may be tried.
        + (8 * penalties + 4 * tried) * outputs * size.num_held_out
        + 16 * tried * outputs * dimensions
    )


def fits_whole(job: HeadJob, size: Size, limit: int) -> bool:
    """Return whether all features of train fit into `limit` bytes at once, with everything that a choice and a fit take besides."""
    return bytes_needed(job, size, limit) <= limit


def memory_limit(device: torch.device, memory: int | None) -> int:
    """Return the bytes that a run may take: those that are free, or `memory` if that is less."""
    free = free_memory(device)
    return free if memory is None else min(free, memory)


def check_whole(job: HeadJob, size: Size, device: torch.device, memory: int | None = None) -> None:
    """Refuse a head that is not trained in mini-batches where the data are too large for its method or for the memory.

    Args:
        job: any job; heads that are trained in mini-batches pass.
        size: sizes of the data.
        device: where the head is fitted.
        memory: bytes that the user allows for the run; None for all free memory.

    Raises:
        RequestError: the data are too large; the message has an alternative.
    """
    if job.solver not in (CLOSED_FORM, EXACT):
        return
    if job.solver == CLOSED_FORM:
        head_class: type[ClosedFormHead] = job.head.load()
        head_class.check_size(size.num_samples, job.selection.num_tokens * size.width)
    limit = memory_limit(device, memory)
    if fits_whole(job, size, limit) or plan_blocks(job, size, limit, device) is not None:
        return
    least = least_bytes(job, size, device)
    needed = bytes_needed(job, size, limit) if least is None else least
    blocks = "" if least is None else "at least "
    free = free_memory(device)
    raise RequestError(
        f"{job.head.name} on {size.num_samples:,} samples of {job.selection.num_tokens * size.width:,} features and "
        f"{size.num_outputs:,} classes or quantities needs {blocks}about {format_bytes(needed)} of memory, and "
        f"{_there_is(limit, free)}; ask for fewer layers, or for a head that is trained in mini-batches, such as linear"
    )


def check_outputs(job: HeadJob, size: Size, num_test: int, memory: int | None = None) -> None:
    """Refuse splits whose outputs do not fit into memory; `check_whole` counts what closed-form heads need in addition.

    Args:
        job: any job.
        size: sizes of the data.
        num_test: samples of the test split.
        memory: bytes that the user allows for the run; None for all free memory.

    Raises:
        RequestError: the outputs are too large; the message has an alternative.
    """
    free = available_memory()
    limit = free if memory is None else min(free, memory)
    held_out = HELD_OUT_COPIES.get(job.solver, 0) * size.num_held_out
    needed = 4 * size.num_outputs * max(TEST_COPIES * num_test, held_out)
    if needed > limit:
        raise RequestError(
            f"the outputs of {job.head.name} for {num_test:,} test and {size.num_held_out:,} held-out samples and "
            f"{size.num_outputs:,} classes or quantities take about {format_bytes(needed)}, and {_there_is(limit, free)}; "
            "give more memory, or take fewer samples"
        )


def _there_is(limit: int, free: int) -> str:
    """Return a description of the available memory."""
    if limit == free:
        return f"{format_bytes(free)} are free"
    return f"--memory allows {format_bytes(limit)}"
