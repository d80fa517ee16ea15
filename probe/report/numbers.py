"""A score as it is shown."""

from math import floor, isfinite, log10

from featcache.probing.report.groups import NO_FRACTION
from featcache.probing.report.tables import Number

LEAST_DECIMALS = 4


def factor(score: str) -> int:
    """What a score is multiplied by to be shown: fractions are in percent."""
    return 1 if score in NO_FRACTION else 100


def number(
    score: str,
    value: float,
    deviation: float | None = None,
    p_value: float | None = None,
    *,
    signed: bool = False,
    best: bool = False,
    interval: tuple[float, float] | None = None,
    tied: bool = False,
) -> Number:
    """A score as it is shown: fractions in percent, others as they are."""
    by, decimals = factor(score), _decimals(value) if score in NO_FRACTION else 2
    spread = None if deviation is None else by * deviation
    low, high = (None, None) if interval is None else (by * interval[0], by * interval[1])
    return Number(by * value, spread, p_value, signed, best, decimals, low, high, tied)


def _decimals(value: float) -> int:
    """Return the decimals for a score with a unit: four, or more to show four digits of a small score."""
    if not value or not isfinite(value):
        return LEAST_DECIMALS
    return max(LEAST_DECIMALS, 3 - floor(log10(abs(value))))
