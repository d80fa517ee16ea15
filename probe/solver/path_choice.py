"""Choose the penalty of a path, and extend the path while the choice is at its end.

A path is extended at its chosen end while the last step improved the likelihood, up to a thousand times weaker or stronger than the
default path (not stronger for a group lasso, which then has no weight left).

Shapes: R held-out samples, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any

from torch import Tensor

from featcache.probing.solver.certificate import Certificate

WEAKER, STRONGER = 1e-3, 1e3
"""Limits of an extended path, as factors of its ends."""
STEPS = 2
"""Number of penalties added at a time."""
LEAST_GAIN = 1e-3
"""Least gain in held-out log-likelihood (nats per sample) of the last step for a path to be extended further."""
DIGITS = 6
"""Decimals of a log-likelihood that count in a tie; further ones are rounding of the solver."""


@dataclass(frozen=True)
class Tried:
    """Held-out results of one penalty over all splits."""

    outputs: Tensor | None
    """Logits ``[R, C]``; None where they were too many to keep for all penalties."""
    score: float
    log_likelihood: float
    """Mean over samples."""
    certificate: Certificate
    """The least exact of the splits."""
    starts: Sequence[Any]
    """The head of every split, a starting point for other fits."""


@dataclass(frozen=True)
class Bounds:
    """Limits of the extension of a default path."""

    weakest: float
    strongest: float

    @classmethod
    def of(cls, penalties: list[float], *, stronger: bool) -> "Bounds":
        """Return the limits for a default path, strong to weak."""
        return cls(penalties[-1] * WEAKER, penalties[0] * (STRONGER if stronger else 1.0))


def most_steps(grid: Sequence[float]) -> int:
    """Largest number of penalties that extend a path at one end; the other end is extended only if the choice moves there."""
    return ceil(log(max(STRONGER, 1 / WEAKER)) / log(grid[0] / grid[1]) - 1e-9)


def select_penalty(tried: Mapping[float, Tried]) -> float:
    """Return the penalty with the best score; a tie goes to the likelier held-out labels, then to the stronger penalty."""
    return max(tried, key=lambda one: (tried[one].score, round(tried[one].log_likelihood, DIGITS), one))


def further_penalties(tried: Mapping[float, Tried], bounds: Bounds) -> list[float]:
    """Return the penalties to extend a path by, strong to weak; none if its end is not chosen, or did not improve."""
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
