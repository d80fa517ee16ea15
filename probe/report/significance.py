"""How sure a mean over seeds is, and a difference of two: Student's t, and Holm's correction for many comparisons.

Seeds are few, so nothing is resampled: the bootstrap of five values gives intervals that are much too narrow.
"""

from collections.abc import Hashable, Mapping, Sequence
from math import isfinite, sqrt
from statistics import mean, stdev
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

# Below this a deviation is rounding: all seeds gave the same.
_NOTHING = 1e-9


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation; None of fewer than two values, or where one is not finite, as of a diverged training."""
    return stdev(values) if len(values) > 1 and all(map(isfinite, values)) else None


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the interval of the mean by Student's t; None if there is no `spread`, or all values are equal.

    Equal values do not make a mean certain: they come from a head that no seed changes.
    """
    deviation = spread(values)
    if deviation is None or deviation < _NOTHING:
        return None
    from scipy.special import stdtrit

    reach = float(stdtrit(len(values) - 1, (1 + level) / 2)) * deviation / sqrt(len(values))
    return mean(values) - reach, mean(values) + reach


def are_alike(values: Sequence[float]) -> bool:
    """Return whether there are several values and all are equal up to rounding."""
    deviation = spread(values)
    return deviation is not None and deviation < _NOTHING


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of the paired t-test that the mean difference is 0.

    Args:
        differences: one for each seed.

    Returns:
        None without `spread`, or where all seeds gave the same difference: there is nothing to test against.
    """
    deviation = spread(differences)
    if deviation is None or deviation < _NOTHING:
        return None
    from scipy.special import stdtr

    t = mean(differences) / (deviation / sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return the p values corrected for their number (Holm 1979): the chance of even one false find stays below them."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[key]))
        adjusted[key] = largest
    return adjusted
