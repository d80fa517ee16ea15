"""The choice of a sweep: train all members on parts of train, and compare them on the held-out samples.

The selection of arXiv 2601.09322, except that the held-out features are clean: in the published runs they
carried the jitter of the training part (a protocol can have it so). A protocol can also choose by folds, each held out once, and by
successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all members train shortly, the best of them longer, and so on.

Shapes: R held-out samples, O outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from featcache.devices.memory import is_out_of_memory
from featcache.probing.heads.base import Head
from featcache.probing.protocols.protocol import Member, Plan
from featcache.probing.scoring.soundness import DIVERGED
from featcache.probing.training.batches import Jitter, Seeds
from featcache.probing.training.prediction import predict
from featcache.probing.training.sweep_options import (
    OnProgress,
    SweepOptions,
    group_size,
    no_room,
    with_group_size,
    with_smaller_groups,
)
from featcache.probing.training.sweep_plan import Round, Sweep
from featcache.probing.training.trainer import fit_members, has_diverged
from featcache.store.errors import DivergedError


@dataclass(frozen=True)
class Tuning:
    """The choice of a sweep by validation."""

    member: Member
    """The chosen member."""
    validation: dict[Member, float]
    """The task's score on held-out samples for every member, in the order of the protocol; of a halving, in its last round; not a
    number where nothing was held out."""
    held_out: Tensor
    """Outputs ``[R, O]`` of the chosen member on the held-out samples, in the order of `Sweep.held_rows`; empty where an earlier run
    trained it."""
    diverged: tuple[Member, ...] = ()
    """Members whose losses, weights or outputs were not finite, in any round."""


class UpdateCounter:
    """Counts updates over sweep and final fit."""

    def __init__(self, on_progress: OnProgress | None, sweep: Sweep, final: bool = True) -> None:
        self._on_progress = on_progress
        self._done = 0
        self._total = sum(each.num_members * sweep.updates(each.factor) for each in sweep.rounds)
        self._total += sweep.final.num_steps if final else 0

    @property
    def done(self) -> int:
        """The updates so far."""
        return self._done

    def skip(self, updates: int) -> None:
        """Count updates of an earlier run; a negative number takes back updates that are to be repeated."""
        self._done += updates

    def __call__(self, updates: int) -> None:
        """Count and report."""
        self._done += updates
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def tune(sweep: Sweep, options: SweepOptions, counter: UpdateCounter | None = None) -> Tuning:
    """Choose the best member on held-out samples.

    A group that runs out of memory is divided, and its members are trained again.

    Raises:
        DivergedError: all members of a round diverged.
        RequestError: one member does not fit into the memory of the device.
    """
    counter = counter or UpdateCounter(options.on_progress, sweep, final=False)
    empty = torch.empty(0, sweep.num_classes)
    if not sweep.splits:
        return Tuning(sweep.members[0], {sweep.members[0]: nan}, empty)
    options = with_group_size(sweep, options)
    rounds: list[dict[Member, float]] = []
    members: Sequence[Member] = sweep.members
    outputs: dict[Member, Tensor] = {}
    for index, each in enumerate(sweep.rounds):
        outputs = _run_round(sweep, each, members, rounds, options, counter)
        scores = rounds[index]
        if max(scores.values()) == DIVERGED:
            raise DivergedError(f"all {len(members)} members diverged{describe_rates(members)}")
        if index + 1 < len(sweep.rounds):
            ranked = sorted(members, key=lambda member: -scores[member])
            kept = ranked[: sweep.rounds[index + 1].num_members]
            members = [member for member in members if member in kept]
    chosen = select_best(rounds[-1])
    lost = {member for scores in rounds for member, score in scores.items() if score == DIVERGED}
    diverged = tuple(member for member in sweep.members if member in lost)
    return Tuning(chosen, rounds[-1], outputs.get(chosen, empty), diverged)


def _run_round(
    sweep: Sweep,
    each: Round,
    members: Sequence[Member],
    rounds: list[dict[Member, float]],
    options: SweepOptions,
    counter: UpdateCounter,
) -> dict[Member, Tensor]:
    """Train the members of one round, group by group, and append their scores to `rounds`, in the order of the members.

    Returns:
        The held-out outputs of the best member; empty if an earlier run trained it.
    """
    finished = options.finished[len(rounds)] if len(rounds) < len(options.finished) else {}
    scores = {member: finished[member] for member in members if member in finished}
    counter.skip(len(scores) * sweep.updates(each.factor))
    rounds.append(scores)
    outputs: dict[Member, Tensor] = {}
    left = [member for member in members if member not in scores]
    while left:
        group, before = left[: group_size(sweep, options)], counter.done
        try:
            for member, held in _held_out(sweep, group, each.factor, options, counter):
                scores[member] = held.score
                best = select_best({other: scores[other] for other in members if other in scores})
                outputs = {member: held.outputs.cpu()} if member == best else outputs
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(group) == 1:
                raise no_room(options) from error
            too_large = True
        else:
            too_large = False
            if options.on_group is not None:
                options.on_group(rounds)
        if too_large:
            # Outside the handler, whose traceback keeps the tensors of the group alive.
            counter.skip(before - counter.done)
            options = with_smaller_groups(options, len(group))
        left = [member for member in left if member not in scores]
    rounds[-1] = {member: scores[member] for member in members}
    return outputs


def select_best(validation: Mapping[Member, float]) -> Member:
    """Return the member with the best score; a tie keeps the earlier one."""
    return max(validation, key=lambda member: validation[member])


def describe_diverged(members: Sequence[Member]) -> str:
    """Return the note on members that diverged while others did not."""
    named = dict.fromkeys(f"{member.learning_rate:g}/{member.weight_decay:g}" for member in members)
    diverged = "1 member diverged and is" if len(members) == 1 else f"{len(members)} members diverged and are"
    return (
        f"{diverged} ranked last, since losses, weights or outputs are not finite "
        f"(learning rate/weight decay {', '.join(named)})"
    )


def describe_rates(members: Sequence[Member]) -> str:
    """Return a description of the learning rates of members that diverged, with a suggestion."""
    rates = dict.fromkeys(f"{member.learning_rate:g}" for member in members)
    named = f"rate {', '.join(rates)}" if len(rates) == 1 else f"rates {', '.join(rates)}"
    return f" (learning {named}): losses, weights or outputs are not finite; give lower learning rates"


@dataclass(frozen=True)
class _HeldOut:
    """Held-out outputs of a member, split after split."""

    outputs: Tensor
    score: float


def held_out_outputs(sweep: Sweep, member: Member, options: SweepOptions) -> Tensor:
    """Train one member on every split again: its outputs ``[R, O]`` on the held-out samples, split after split."""
    ((_, held),) = _held_out(sweep, [member], 1.0, options, lambda updates: None)
    return held.outputs.cpu()


def _held_out(
    sweep: Sweep,
    group: Sequence[Member],
    factor: float,
    options: SweepOptions,
    counter: Callable[[int], None],
) -> Iterator[tuple[Member, _HeldOut]]:
    """Train some members on every split, and yield each with its outputs on all held-out samples, split after split.

    The outputs of the last split, usually the only one, are computed on demand: for a large train split with many classes, the
    outputs of all members together do not fit into memory.
    """
    pieces: dict[Member, list[Tensor]] = {member: [] for member in group}
    diverged: set[Member] = set()
    for number, (train_rows, held_rows) in enumerate(sweep.splits, 1):
        heads = train_members(sweep, train_rows, group, sweep.plan(train_rows, factor), options, counter)
        for member, head in zip(group, heads, strict=True):
            jitter = _validation_jitter(sweep, options.device)
            diverged |= {member} if has_diverged(head) else set()
            pieces[member].append(predict(head, sweep.tokens, held_rows, sweep.batch_size, jitter))
            if number == len(sweep.splits):
                parts = pieces.pop(member)
                outputs = parts[0] if len(parts) == 1 else torch.cat(parts)
                targets = sweep.targets[sweep.held_rows].to(outputs.device)
                score = DIVERGED if member in diverged else sweep.task.score(outputs, targets)
                yield member, _HeldOut(outputs, score)


def train_members(
    sweep: Sweep,
    rows: Tensor,
    members: Sequence[Member],
    plan: Plan,
    options: SweepOptions,
    on_step: Callable[[int], None],
) -> list[Head]:
    """Train some members of a sweep on some rows; see `fit_members`."""
    return fit_members(
        sweep.build,
        sweep.tokens,
        sweep.targets,
        rows,
        members,
        protocol=sweep.protocol,
        batch_size=sweep.batch_size,
        seed=sweep.seed,
        num_classes=sweep.num_classes,
        task=sweep.task,
        plan=plan,
        device=options.device,
        precision=options.precision,
        on_step=on_step,
    )


def _validation_jitter(sweep: Sweep, device: torch.device | str) -> Jitter | None:
    """The noise of the published runs on held-out samples, the same for every member."""
    protocol = sweep.protocol
    if not protocol.jitter_validation:
        return None
    seed = Seeds.derive(sweep.seed).jitter ^ 1
    return Jitter(protocol.jitter_probability, protocol.jitter_std, seed, device)
