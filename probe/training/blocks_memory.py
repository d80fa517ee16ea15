"""Memory of a fit whose features are read block by block, and its division.

Shapes: N samples, R held-out samples, F features, O outputs, P penalties.
"""

from typing import TYPE_CHECKING

import torch

from featcache.probing.requests.jobs import HeadJob
from featcache.probing.requests.request import CLOSED_FORM, EXACT, GROUP_LASSO
from featcache.probing.scoring.held_out import OUTPUT_SHARE
from featcache.probing.solver import logistic
from featcache.probing.solver.logistic import BATCH_COLUMNS
from featcache.probing.solver.path_choice import most_steps
from featcache.probing.solver.spaces import MAX_EIGEN, prefers_samples
from featcache.probing.solver.streamed_solver import StreamedPlan
from featcache.probing.training.size import Size

if TYPE_CHECKING:
    from featcache.probing.heads.closed_form import ClosedFormHead

# Rows of a block: with fewer, reading and small products take most of the time; more gain nothing.
LEAST_ROWS, MOST_ROWS = 128, 4096
# Bytes of a block for each of its features: stored, in float32 and twice in float64.
BYTES_PER_FEATURE = 4 + 4 + 16
# Float64 copies of a block's logits.
LOGIT_COPIES = 4
# Float64 copies of parameters besides the history of L-BFGS, whose steps and gradients are kept, and copied twice to be saved.
PARAMETER_COPIES, HISTORY_COPIES = 14, 6
LEAST_HISTORY = 3
# Bytes that an eigendecomposition of the preconditioner takes for each entry, in float32, and that of a Gram matrix, in float64.
EIGEN_BYTES, GRAM_BYTES = 6 * 4, 6 * 8
# Bytes for each sample: labels, targets, weights, rows.
BYTES_PER_SAMPLE = 64


def plan_blocks(job: HeadJob, size: Size, limit: int, device: torch.device) -> StreamedPlan | None:
    """Divide `limit` bytes; None if they do not suffice, or if the method needs all features at once."""
    for plan in _plans(job, size, limit):
        needed, per_row = _bytes(job, size, device, plan, limit)
        rows = (limit - needed) // per_row
        if rows >= LEAST_ROWS:
            return StreamedPlan(min(rows, MOST_ROWS), plan.history, plan.max_eigen, plan.gram)
    return None


def least_bytes(job: HeadJob, size: Size, device: torch.device) -> int | None:
    """Return the least memory with which a plan is found; None if the method needs all features at once."""
    totals = []
    for plan in _plans(job, size, 0):
        needed, per_row = _bytes(job, size, device, plan, 0)
        totals.append(needed + LEAST_ROWS * per_row)
    return min(totals, default=None)


def _plans(job: HeadJob, size: Size, limit: int) -> list[StreamedPlan]:
    """Return ways to divide the memory, the fastest first; block_rows is open."""
    if job.solver == EXACT and job.penalty != GROUP_LASSO:
        return [
            StreamedPlan(0),
            StreamedPlan(0, gram=False),
            StreamedPlan(0, max_eigen=0, gram=False),
            StreamedPlan(0, LEAST_HISTORY, max_eigen=0, gram=False),
        ]
    if job.solver == CLOSED_FORM:
        head_class: type[ClosedFormHead] = job.head.load()
        return [StreamedPlan(0)] if head_class.reads_blocks else []
    return []


def _bytes(job: HeadJob, size: Size, device: torch.device, plan: StreamedPlan, limit: int) -> tuple[int, int]:
    """Return the bytes of everything but blocks, and those of each row of a block."""
    features, outputs = job.selection.num_tokens * size.width, size.num_outputs
    # A GPU is sent the next block meanwhile.
    ahead = 2 if device.type == "cuda" else 1
    per_row = ahead * BYTES_PER_FEATURE * features
    fixed = BYTES_PER_SAMPLE * size.num_samples
    held_out = 4 * size.num_held_out * outputs
    if job.solver == CLOSED_FORM:
        head_class: type[ClosedFormHead] = job.head.load()
        kept = min(len(head_class.grid(size.num_samples)) * held_out, limit // OUTPUT_SHARE)
        fixed += kept + 2 * held_out + head_class.block_bytes(size.num_samples, features, outputs)
        return fixed, per_row + 8 * outputs
    tried = len(logistic.GRID) + most_steps(logistic.GRID)
    columns = max(outputs, BATCH_COLUMNS.get(device.type, 64))
    evidence = 12 * tried * size.num_held_out
    fixed += 2 * held_out + max(evidence, min(tried * held_out, limit // OUTPUT_SHARE))
    if plan.gram and prefers_samples(size.num_samples, features):
        # Two blocks meet; the solution is in the terms of the samples.
        copies = GRAM_BYTES * size.num_samples**2
        copies += 8 * (20 * columns + 3 * tried * outputs) * size.num_samples + 24 * outputs * features
        return fixed + copies, 2 * per_row
    history = 8 * HISTORY_COPIES * plan.history + 8 * PARAMETER_COPIES
    solutions = 8 * (tried + 3 * len(logistic.GRID)) * outputs * features
    eigen = EIGEN_BYTES * features**2 if features <= min(plan.max_eigen, MAX_EIGEN) else 0
    hessian = 4 * 8 * columns * outputs
    return (
        fixed + history * columns * features + solutions + eigen + hessian,
        per_row + 8 * LOGIT_COPIES * columns,
    )
