"""A sweep over the members of a protocol: choose on held-out samples of train, then fit on all of it."""

import time
from dataclasses import dataclass

import torch

from featcache.devices.memory import is_out_of_memory
from featcache.probing.heads.base import Head
from featcache.probing.protocols.protocol import Member, Plan
from featcache.probing.scoring.soundness import DIVERGED
from featcache.probing.training.sweep_options import SweepOptions, no_room
from featcache.probing.training.sweep_plan import Sweep
from featcache.probing.training.trainer import has_diverged
from featcache.probing.training.tuning import (
    Tuning,
    UpdateCounter,
    describe_rates,
    select_best,
    train_members,
    tune,
)
from featcache.store.errors import DivergedError


@dataclass(frozen=True)
class SweepResult:
    """The outcome of one sweep."""

    member: Member
    """The chosen member."""
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
    """
    options = options or SweepOptions()
    start = time.perf_counter()
    counter = UpdateCounter(options.on_progress, sweep)
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


def finish(
    sweep: Sweep, tuning: Tuning, options: SweepOptions, counter: UpdateCounter | None = None
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
            (head,) = train_members(
                sweep, rows, [member], sweep.final, options, counter or (lambda updates: None)
            )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise no_room(options) from error
            raise
        if not has_diverged(head):
            return member, head, diverged
        diverged = (*diverged, member)
        del left[member]
    raise DivergedError(f"every member diverged{describe_rates(diverged)}")
