"""Memory of members that train together, measured by a few updates of more and more members.

A parameter takes 12 bytes with Adam's moments, but gradients, activations and buffers take one to seven times as much on top,
depending on the head, the batch and the device, so no constant holds for all.

Shapes: M members, R held-out samples, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from featcache.devices.float32 import exact_float32
from featcache.devices.memory import is_out_of_memory
from featcache.devices.peak import measure_peak
from featcache.probing.heads.base import Head
from featcache.probing.heads.scratch import buffers
from featcache.probing.training.batches import Batch, Seeds, mini_batches
from featcache.probing.training.sweep_plan import Sweep
from featcache.probing.training.trainer import Training, initial_head, members_together

# After the first update, all buffers that are used again exist.
_TRIAL_UPDATES = 2
# A trial has at most this many times the members of the one before. What is at its peak for few members, such as the tokens of a
# mini-batch in another type, is not for many, so the last two trials tell how the memory grows.
_TRIAL_FACTOR = 4


@dataclass(frozen=True)
class Growth:
    """Bytes that grow evenly with the number of members, up to a bound."""

    few: tuple[int, int]
    """A number of members, and their bytes."""
    many: tuple[int, int]
    """A larger number of members, and their bytes."""
    most: int | None = None
    """The bound; None where there is none."""

    def of(self, members: int) -> int:
        """Return the bytes for `members` members."""
        (few, low), (many, high) = self.few, self.many
        # Without a second trial nothing tells what is shared.
        each = (high - low) / (many - few) if many > few else high / many
        size = max(low if members >= few else 0, int(high + (members - many) * each))
        return size if self.most is None else min(size, max(self.most, high))


@dataclass(frozen=True)
class GroupMemory:
    """Bytes that members take while they train together."""

    kept: int
    """Of each member, throughout: parameters, statistics, Adam's moments, and its outputs on folds that are through."""
    buffers: tuple[Growth, ...]
    """Buffers that are used again, of the members that go through an update as one head."""
    step: Growth
    """A mini-batch and what an update makes of it, of the members that go through it as one head."""
    reading: int
    """A mini-batch while the next one is read."""
    outputs: int
    """Outputs of one member on held-out samples."""
    together: int
    """Members that go through an update as one head, at most."""

    def of(self, members: int) -> int:
        """Return the peak for `members` members."""
        one_head = min(members, self.together)
        # Reading, updates and predictions follow each other.
        passing = max(self.step.of(one_head), self.reading, self.outputs)
        return members * self.kept + sum(buffer.of(one_head) for buffer in self.buffers) + passing

    def fitting(self, memory: int, most: int) -> int:
        """Return how many members fit into `memory` bytes: at least one, and at most `most`."""
        low, high = 1, max(1, most)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.of(middle) <= memory else (low, middle - 1)
        return low


@dataclass(frozen=True)
class _Trial:
    """What was measured with some members."""

    members: int
    peak: int
    """Bytes above the mini-batch."""
    buffers: Mapping[str, tuple[int, int | None]]
    """See `Buffers.sizes`."""


@exact_float32()
def measure_group(sweep: Sweep, device: torch.device, precision: str, memory: int) -> GroupMemory:
    """Measure by training copies of members, which are thrown away.

    Trials have more and more members, as long as more seem to fit into `memory`.

    Args:
        sweep: the plan.
        device: where the members will train.
        precision: of matrix products, ``fp32`` or ``bf16``.
        memory: bytes that the members may take.

    Raises:
        RuntimeError: one member does not fit into the memory of the device.
    """
    # What an earlier fit left would not be counted.
    buffers().release()
    batch, reading = _read(sweep, device)
    always = _total(buffers().sizes(device))  # the noise of the jitter
    together = members_together(sweep.build, sweep.tokens, sweep.num_classes, device)
    held = 4 * len(sweep.held_rows) * sweep.num_classes
    with torch.device("meta"):
        size = (sweep.tokens.num_tokens, sweep.tokens.width, sweep.num_classes)
        kept = _kept_bytes(sweep.build(*size, (0.0,)))

    def account(few: _Trial, many: _Trial) -> GroupMemory:
        in_hand = batch.tokens.nbytes + batch.labels.nbytes

        def step(trial: _Trial) -> tuple[int, int]:
            own = trial.peak - trial.members * kept - _total(trial.buffers)
            return trial.members, in_hand + max(0, own)

        grown = [
            Growth((few.members, few.buffers.get(name, (0, None))[0]), (many.members, size), most)
            for name, (size, most) in many.buffers.items()
        ]
        return GroupMemory(
            kept=kept + (held if len(sweep.splits) > 1 else 0),
            buffers=(Growth((1, always), (2, always)), *grown),
            step=Growth(step(few), step(many)),
            reading=max(0, reading - always),
            outputs=2 * held,
            together=together,
        )

    trial = _train(sweep, 1, batch, device, precision)
    found = account(trial, trial)
    limit = min(len(sweep.members), together)
    while trial.members < limit:
        # What seems to fit is tried: what members add may still hide below what they share.
        fitting = found.fitting(memory, limit)
        number = min(_TRIAL_FACTOR * trial.members, fitting)
        if trial.members == 1 and found.of(1) + kept <= memory:
            number = max(2, number)  # one member alone does not tell what all share
        if number <= trial.members:
            break
        try:
            larger = _train(sweep, number, batch, device, precision)
        except RuntimeError as error:  # other programs take memory too
            if not is_out_of_memory(error):
                raise
            break
        found, trial = account(trial, larger), larger
    return found


def _read(sweep: Sweep, device: torch.device) -> tuple[Batch, int]:
    """Return a mini-batch, and the peak while the next one is read."""
    rows = (sweep.tokens, sweep.targets, sweep.train_rows)
    read: list[Batch] = []

    def read_two() -> None:
        batches = mini_batches(*rows, sweep.tuning, sweep.protocol, Seeds.derive(sweep.seed), device)
        for batch in islice(batches, 2):
            read[:] = [batch]

    peak = measure_peak(device, read_two)
    return read[0], peak


def _total(sizes: Mapping[str, tuple[int, int | None]]) -> int:
    return sum(size for size, _ in sizes.values())


def _kept_bytes(head: Head) -> int:
    """Return the bytes of parameters with their two moments, and of statistics."""
    parameters = sum(parameter.nbytes for parameter in head.parameters())
    return 3 * parameters + sum(buffer.nbytes for buffer in head.buffers())


def _train(sweep: Sweep, number: int, batch: Batch, device: torch.device, precision: str) -> _Trial:
    """Train the last members, which drop most: dropout takes memory too."""
    buffers().release()
    members = sweep.members[-number:]

    def train() -> None:
        dropouts = [member.dropout for member in members]
        init = Seeds.derive(sweep.seed).init
        head = initial_head(sweep.build, sweep.tokens, sweep.num_classes, dropouts, init).to(device)
        loss = sweep.task.loss(sweep.targets[sweep.train_rows], device)
        generator = torch.Generator(device).manual_seed(0)
        training = Training([head], members, sweep.protocol, loss, _TRIAL_UPDATES, precision, generator)
        for _ in range(_TRIAL_UPDATES):
            training.step(batch)

    peak = measure_peak(device, train)
    return _Trial(number, peak, buffers().sizes(device))
