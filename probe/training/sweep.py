"""A sweep over the members of a protocol: choose on held-out samples of train, then fit on all of it.

The selection of arXiv 2601.09322, except that the held-out features are clean: in the published runs they
carried the jitter of the training part (a protocol can have it so). A protocol can also choose by folds, each held out once, and by
successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all members train shortly, the best of them longer, and so on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor

from featcache.devices.memory import is_out_of_memory, release_memory
from featcache.devices.precision import FP32
from featcache.probing.heads import scratch
from featcache.probing.heads.base import Head
from featcache.probing.protocols.protocol import Member, Plan
from featcache.probing.scoring.soundness import DIVERGED
from featcache.probing.training.batches import Jitter, Seeds
from featcache.probing.training.group_memory import measure_group
from featcache.probing.training.sweep_plan import Sweep
from featcache.probing.training.trainer import fit_members, has_diverged, predict
from featcache.store.errors import DivergedError, RequestError

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
    """Of matrix products, ``fp32`` or ``bf16``."""
    group_size: int | None = None
    """How many members train together at most; by default as many as fit into `memory`."""
    memory: int = 2**31
    """Bytes for all that the members that train together take; see `GroupMemory`."""
    finished: Rounds = ()
    """Validation scores of members that an earlier run trained: they are not trained again."""
    on_group: OnGroup | None = None
    """Called with the validation scores of all members so far, whenever a group is through."""
    on_progress: OnProgress | None = None
    """Called with the updates done and to be done, counted over members, sweep and final fit."""
    on_note: Callable[[str], None] | None = None
    """Called with a line on what a user should know, such as groups that turn out too large for the device."""


@dataclass(frozen=True)
class Tuning:
    """What validation found."""

    member: Member
    """The chosen one."""
    validation: dict[Member, float]
    """The task's score on held-out samples for every member, in the order of the protocol; of a halving, in its last round; not a
    number where nothing was held out."""
    held_out: Tensor
    """Outputs ``[R, O]`` of the chosen member on the held-out samples, in the order of `Sweep.held_rows`; empty where an earlier run
    trained it."""
    diverged: tuple[Member, ...] = ()
    """Members whose losses, weights or outputs were not finite, in any round."""


@dataclass(frozen=True)
class SweepResult:
    """The outcome of one sweep."""

    member: Member
    """The chosen one."""
    validation: dict[Member, float]
    """See `Tuning`."""
    head: Head
    """Fitted on all of train, in eval mode."""
    num_parameters: int
    num_classes: int
    tuning: Plan
    final: Plan
    seconds: float
    """Wall time of the sweep and the final fit."""
    diverged: tuple[Member, ...] = ()
    """See `Tuning`; the final fit counts too."""


def run_sweep(sweep: Sweep, options: SweepOptions | None = None) -> SweepResult:
    """Choose the best member on held-out samples, then fit it on all of train.

    Raises:
        DivergedError: every member diverged.
        RequestError: one member does not fit into the memory of the device.
    """
    options = options or SweepOptions()
    start = time.perf_counter()
    counter = _Counter(options.on_progress, sweep)
    tuning = tune(sweep, options, counter)
    member, head, diverged = finish(sweep, tuning, options, counter)
    return SweepResult(
        member,
        tuning.validation,
        head,
        sweep.num_parameters,
        sweep.num_classes,
        sweep.tuning,
        sweep.final,
        time.perf_counter() - start,
        diverged,
    )


class _Counter:
    """Counts updates over sweep and final fit."""

    def __init__(self, on_progress: OnProgress | None, sweep: Sweep, final: bool = True) -> None:
        self._on_progress = on_progress
        self._done = 0
        self._total = sum(one.num_members * sweep.updates(one.factor) for one in sweep.rounds)
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


def tune(sweep: Sweep, options: SweepOptions, counter: _Counter | None = None) -> Tuning:
    """Choose the best member on held-out samples.

    A group that runs out of memory is divided, and its members are trained again.

    Raises:
        DivergedError: all members of a round diverged.
        RequestError: one member does not fit into the memory of the device.
    """
    counter = counter or _Counter(options.on_progress, sweep, final=False)
    empty = torch.empty(0, sweep.num_classes)
    if not sweep.splits:
        return Tuning(sweep.members[0], {sweep.members[0]: nan}, empty)
    options = with_group_size(sweep, options)
    rounds: list[dict[Member, float]] = []
    members: Sequence[Member] = sweep.members
    for index, one in enumerate(sweep.rounds):
        known = options.finished[index] if index < len(options.finished) else {}
        scores = {member: known[member] for member in members if member in known}
        counter.skip(len(scores) * sweep.updates(one.factor))
        rounds.append(scores)
        outputs: dict[Member, Tensor] = {}
        left = [member for member in members if member not in scores]
        while left:
            size = group_size(sweep, options)
            group, before = left[:size], counter.done
            try:
                for member, held in _held_out(sweep, group, one.factor, options, counter):
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
        scores = {member: scores[member] for member in members}
        rounds[index] = scores
        if max(scores.values()) == DIVERGED:
            raise DivergedError(f"all {len(members)} members diverged{_rates(members)}")
        if index + 1 < len(sweep.rounds):
            kept = sorted(members, key=lambda member: -scores[member])[: sweep.rounds[index + 1].num_members]
            members = [member for member in members if member in kept]
    chosen = select_best(rounds[-1])
    lost = {member for scores in rounds for member, score in scores.items() if score == DIVERGED}
    diverged = tuple(member for member in sweep.members if member in lost)
    return Tuning(chosen, rounds[-1], outputs.get(chosen, empty), diverged)


def describe_diverged(members: Sequence[Member]) -> str:
    """Return the note on members that diverged while others did not."""
    named = dict.fromkeys(f"{one.learning_rate:g}/{one.weight_decay:g}" for one in members)
    diverged = "1 member diverged and is" if len(members) == 1 else f"{len(members)} members diverged and are"
    return (
        f"{diverged} ranked last, since losses, weights or outputs are not finite "
        f"(learning rate/weight decay {', '.join(named)})"
    )


def _rates(members: Sequence[Member]) -> str:
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
        heads = _fit(sweep, train_rows, group, sweep.plan(train_rows, factor), options, counter)
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


def finish(
    sweep: Sweep, tuning: Tuning, options: SweepOptions, counter: _Counter | None = None
) -> tuple[Member, Head, tuple[Member, ...]]:
    """Fit the chosen member on all of train; if it diverges, fit the next best one, and so on.

    Returns:
        The member, its head, and all members that diverged, here or before.

    Raises:
        DivergedError: every member diverged.
    """
    rows = torch.arange(sweep.tokens.num_samples)
    left = {member: score for member, score in tuning.validation.items() if score != DIVERGED}
    diverged = tuning.diverged
    while left:
        member = select_best(left)
        try:
            (head,) = _fit(sweep, rows, [member], sweep.final, options, counter or (lambda updates: None))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise no_room(options) from error
            raise
        if not has_diverged(head):
            return member, head, diverged
        diverged = (*diverged, member)
        del left[member]
    raise DivergedError(f"every member diverged{_rates(diverged)}")


def _fit(
    sweep: Sweep,
    rows: Tensor,
    members: Sequence[Member],
    plan: Plan,
    options: SweepOptions,
    on_step: Callable[[int], None],
) -> list[Head]:
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


def group_size(sweep: Sweep, options: SweepOptions) -> int:
    """Return how many members train together: as many as the options say, or as fit into their memory.

    Results do not depend on it but for rounding: torch's matrix products of other sizes may add in another order.
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


def select_best(validation: Mapping[Member, float]) -> Member:
    """Return the member with the best score; a tie keeps the earlier one."""
    return max(validation, key=lambda member: validation[member])


def suitable_threads(sweep: Sweep) -> int:
    """Return the number of threads for a sweep; timing plays no role, so that the same command gives the same result."""
    # A product and a sum per parameter, once forward and twice backward.
    operations = 6.0 * sweep.num_parameters * sweep.batch_size * len(sweep.members)
    return 1 if operations < SMALL_STEP else torch.get_num_threads()
