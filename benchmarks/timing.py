"""Measuring two things side by side, on a machine that others use too."""

import time
from collections.abc import Callable
from statistics import median

RUNS = 7
Document = dict[str, object]


def side_by_side(
    ours: Callable[[], object],
    other: Callable[[], object],
    runs: int = RUNS,
    before: Callable[[], object] | None = None,
) -> Document:
    """Median seconds of both, run in turn after a warm-up, and how many times faster ours is.

    Args:
        ours: what is measured.
        other: what it is measured against.
        runs: how often.
        before: called before every call of either, outside the measurement.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for function, seconds in zip((ours, other), times, strict=True):
            if before is not None:
                before()
            started = time.perf_counter()
            function()
            if run:
                seconds.append(time.perf_counter() - started)
    a, b = (median(seconds) for seconds in times)
    return {
        "seconds": round(a, 6),
        "other_seconds": round(b, 6),
        "times_faster": round(b / a, 2),
        "runs": runs,
    }
