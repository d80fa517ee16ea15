"""How a sweep runs: device, memory, progress, and what follows from them, the size of groups and the number of threads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from featcache.devices.memory import is_out_of_memory, release_memory
from featcache.devices.precision import FP32
from featcache.probing.heads import scratch
from featcache.probing.protocols.protocol import Member
from featcache.probing.training.group_memory import measure_group
from featcache.probing.training.sweep_plan import Sweep
from featcache.store.errors import RequestError

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
    """Bytes for all that the members that train together take; see `GroupMemory`."""
    finished: Rounds = ()
    """Validation scores of members that an earlier run trained; these members are not trained again."""
    on_group: OnGroup | None = None
    """Called with the validation scores of all members so far, whenever a group is through."""
    on_progress: OnProgress | None = None
    """Called with the updates done and to be done, counted over members, sweep and final fit."""
    on_note: Callable[[str], None] | None = None
    """Called with a line on what a user should know, such as groups that turn out too large for the device."""


def group_size(sweep: Sweep, options: SweepOptions) -> int:
    """Return how many members train together: as many as the options say, or as fit into their memory.

    Results do not depend on it but for rounding: torch's matrix products of other sizes may add in another order.

    Raises:
        RequestError: one member does not fit into the memory of the device.
    """
    if options.group_size is not None:
        return options.group_size
    number = len(sweep.members)
    if number == 1:
        return 1
    try:
        memory = measure_group(sweep, torch.device(options.device), options.precision, options.memory)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise no_room(options) from error
        raise
    fitting, together = memory.fitting(options.memory, number), memory.together
    # Full heads, where more than one of them fits.
    return fitting // together * together if fitting > together else fitting


def with_group_size(sweep: Sweep, options: SweepOptions) -> SweepOptions:
    """Return the options with the size of groups settled, so that it is measured once."""
    return replace(options, group_size=group_size(sweep, options))


def with_smaller_groups(options: SweepOptions, too_many: int) -> SweepOptions:
    """Return options for half as many members as were too many, and free what the failed group took."""
    scratch.release()
    release_memory(torch.device(options.device))
    size = too_many // 2
    if options.on_note is not None:
        options.on_note(f"out of memory on {options.device}: going on with {size} members at a time")
    return replace(options, group_size=size)


def no_room(options: SweepOptions) -> RequestError:
    """Return the error for a device that does not hold even one member."""
    return RequestError(
        f"one member does not fit into the memory of {options.device}; free some, ask for fewer layers"
        + ("" if torch.device(options.device).type == "cpu" else ", or take --device cpu")
    )


def suitable_threads(sweep: Sweep) -> int:
    """Return the number of threads for a sweep; timing plays no role, so that the same command gives the same result."""
    # A product and a sum per parameter, once forward and twice backward.
    operations = 6.0 * sweep.num_parameters * sweep.batch_size * len(sweep.members)
    return 1 if operations < SMALL_STEP else torch.get_num_threads()
