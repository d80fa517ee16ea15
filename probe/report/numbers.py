"""A score as it is shown."""

from featcache.probe.report.groups import NO_FRACTION
from featcache.probe.report.tables import Number


def number(
    score: str,
    value: float,
    deviation: float | None = None,
    p_value: float | None = None,
    *,
    signed: bool = False,
    best: bool = False,
) -> Number:
    """A score as it is shown: fractions in percent, others as they are."""
    scale, decimals = (1, 4) if score in NO_FRACTION else (100, 2)
    spread = None if deviation is None else scale * deviation
    return Number(scale * value, spread, p_value, signed, best, decimals)
