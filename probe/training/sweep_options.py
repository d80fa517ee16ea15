"""How a sweep runs: device, memory, progress, and what follows from them, the size of groups and the number of threads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from featcache.devices.precision import FP32
from featcache.probing.protocols.protocol import Member
from featcache.probing.training.sweep_plan import Sweep
from featcache.probing.training.trainer import members_together

# Bytes that a parameter takes while its member trains: itself and Adam's two moments; its gradient is one of few at a time.
BYTES_PER_PARAMETER = 3 * 4

# Floating-point operations of a training step below which one thread is used. Threads synchronize after every operation: two threads
# gain little on small operations, and are many times slower if another program uses the same cores.
SMALL_STEP = 3e9

Rounds = Sequence[Mapping[Member, float]]
"""Validation scores, round by round of a halving; without one there is a single round."""
OnProgress = Callable[[int, int], None]
OnGroup = Callable[[Rounds], None]


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep runs. Nothing here changes what members are trained, only rounding and what it takes."""

    device: torch.device | str = "cpu"
    """Where to train; the tokens may live elsewhere."""
    precision: str = FP32
    """Precision of matrix products: ``fp32`` or ``bf16``."""
    group_size: int | None = None
    """Most members that train together; by default as many as fit into `memory`."""
    memory: int = 2**31
    """Bytes for the members that train together."""
    finished: Rounds = ()
    """Validation scores of members that an earlier run trained; these members are not trained again."""
    on_group: OnGroup | None = None
    """Called with the validation scores of all members so far, whenever a group is through."""
    on_progress: OnProgress | None = None
    """Called with the updates done and to be done, counted over members, sweep and final fit."""


def group_size(sweep: Sweep, options: SweepOptions) -> int:
    """Return the number of members that train together."""
    if options.group_size is not None:
        return options.group_size
    together = members_together(sweep.build, sweep.tokens, sweep.num_classes, torch.device(options.device))
    fitting = options.memory // (BYTES_PER_PARAMETER * max(1, sweep.num_parameters))
    # Full heads, where more than one of them fits.
    return max(1, fitting // together * together if fitting > together else fitting)


def suitable_threads(sweep: Sweep) -> int:
    """Return the number of threads for a sweep; timing plays no role, so that the same command gives the same result."""
    # A product and a sum per parameter, once forward and twice backward.
    operations = 6.0 * sweep.num_parameters * sweep.batch_size * len(sweep.members)
    return 1 if operations < SMALL_STEP else torch.get_num_threads()
