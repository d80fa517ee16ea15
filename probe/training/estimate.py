"""How long a sweep will take, from a few updates of a throw-away copy of its members."""

import time
from dataclasses import dataclass
from itertools import islice

import torch

from featcache.devices.float32 import exact_float32
from featcache.probing.training.batches import Seeds, mini_batches
from featcache.probing.training.sweep_options import SweepOptions, group_size, with_group_size
from featcache.probing.training.sweep_plan import Sweep
from featcache.probing.training.trainer import Training, initial_head, members_together

TIMED_UPDATES = 2


@dataclass(frozen=True)
class Estimate:
    """Seconds of the parts of a sweep."""

    per_batch: float
    """Reading, normalizing and jittering one mini-batch."""
    per_member: float
    """Updating one member on it."""
    seconds: float
    """The whole sweep and the final fit."""

    def group_of(self, seconds: float, steps: int) -> int:
        """How many members train for `steps` updates within `seconds`, at least one."""
        return max(1, int((seconds / steps - self.per_batch) / self.per_member))


@exact_float32()
def estimate_sweep(sweep: Sweep, options: SweepOptions) -> Estimate:
    """Time two updates of as many members as go through a step together, after one to warm up."""
    device = torch.device(options.device)
    options = with_group_size(sweep, options)
    together = members_together(sweep.build, sweep.tokens, sweep.num_classes, device)
    last = options.finished[-1] if options.finished else {}
    left = [member for member in sweep.members if member not in last]
    members = (left or list(sweep.members))[-min(together, group_size(sweep, options)) :]
    seeds = Seeds.derive(sweep.seed)
    dropouts = [member.dropout for member in members]
    head = initial_head(sweep.build, sweep.tokens, sweep.num_classes, dropouts, seeds.init).to(device)
    loss = sweep.task.loss(sweep.targets[sweep.train_rows], device)
    steps = sweep.tuning.num_steps
    generator = torch.Generator(device).manual_seed(0)
    training = Training([head], members, sweep.protocol, loss, steps, options.precision, generator)
    rows = (sweep.tokens, sweep.targets, sweep.train_rows)
    batches = mini_batches(*rows, sweep.tuning, sweep.protocol, seeds, device)
    reading, updating = [], []
    for _ in range(1 + TIMED_UPDATES):
        start = time.perf_counter()
        batch = next(iter(islice(batches, 1)), None)
        if batch is None:  # a training of fewer updates
            break
        _wait(device)
        read = time.perf_counter()
        training.step(batch)
        _wait(device)
        reading.append(read - start)
        updating.append(time.perf_counter() - read)
    per_batch, per_member = min(reading), min(updating) / len(members)
    tuning = 0.0
    for index, each in enumerate(sweep.rounds):
        number = each.num_members - (len(options.finished[index]) if index < len(options.finished) else 0)
        groups = -(-number // group_size(sweep, options))
        tuning += sweep.updates(each.factor) * (groups * per_batch + number * per_member)
    final = sweep.final.num_steps * (per_batch + per_member)
    return Estimate(per_batch, per_member, tuning + final)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
