"""Which penalty of a path is chosen, and how the path goes on while that is its end.

A path is extended at the end that was chosen, as long as the last step brought something, and no further than a thousand times weaker
or stronger than its default (a group lasso not stronger: there nothing is left with weight).

Shapes: R held-out samples, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any

from torch import Tensor

from featcache.probe.solver.certificate import Certificate

WEAKER, STRONGER = 1e-3, 1e3
"""How far a path may be extended, as factors of its ends."""
STEPS = 2
"""Penalties that are added at a time."""
LEAST_GAIN = 1e-3
"""Of the held-out log-likelihood (nats per sample), by the last step: with less, further ones are not worth it."""
DIGITS = 6
"""Decimals of a log-likelihood that count in a tie; the rest is rounding of the solver."""


@dataclass(frozen=True)
class Tried:
    """What one penalty gave on the held-out samples of all splits."""

    outputs: Tensor
    """Logits ``[R, C]``."""
    score: float
    log_likelihood: float
    """Mean over samples."""
    certificate: Certificate
    """The least exact of the splits."""
    start: Any
    """What a fit may start from: coefficients of the first split."""


@dataclass(frozen=True)
class Bounds:
    """How far a default path may go on."""

    weakest: float
    strongest: float

    @classmethod
    def of(cls, penalties: list[float], *, stronger: bool) -> "Bounds":
        """Those of a default path, strong to weak."""
        return cls(penalties[-1] * WEAKER, penalties[0] * (STRONGER if stronger else 1.0))


def most_steps(grid: Sequence[float]) -> int:
    """How many penalties a path may be extended by at one end; it goes on at the other only if the choice changes sides."""
    return ceil(log(max(STRONGER, 1 / WEAKER)) / log(grid[0] / grid[1]) - 1e-9)


def select_penalty(tried: Mapping[float, Tried]) -> float:
    """Return the penalty with the best score; a tie goes to the likelier held-out labels, then to the stronger penalty."""
    return max(tried, key=lambda one: (tried[one].score, round(tried[one].log_likelihood, DIGITS), one))


def further_penalties(tried: Mapping[float, Tried], bounds: Bounds) -> list[float]:
    """The penalties that a path goes on with, strong to weak; none where its end is not chosen, or brought nothing."""
    order = sorted(tried, reverse=True)
    chosen = select_penalty(tried)
    if len(order) < 2 or chosen not in (order[0], order[-1]):
        return []
    inner = order[1] if chosen == order[0] else order[-2]
    gained = tried[chosen].score > tried[inner].score
    gained |= tried[chosen].log_likelihood - tried[inner].log_likelihood >= LEAST_GAIN
    if not gained or not tried[chosen].certificate.converged:
        return []
    steps = [chosen * (chosen / inner) ** (step + 1) for step in range(STEPS)]
    room = 1 + 1e-9  # rounding must not cut the last one
    return sorted(
        (one for one in steps if bounds.weakest / room <= one <= bounds.strongest * room), reverse=True
    )
