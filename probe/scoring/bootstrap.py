"""Bootstrap over test samples (Efron 1979) of scores that are no shares: percentiles of the score of resampled samples.

Resampled samples are given as how often each one was drawn, so that a score is computed from sums.

Shapes: N samples, C classes, O outputs, S resamples.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

RESAMPLES, LEAST_RESAMPLES = 1000, 200
# Values of samples, columns and resamples that are computed at most; beyond them fewer resamples are drawn, then no interval is given.
MOST_VALUES = 10**9
# Drawn counts in a block.
BLOCK_VALUES = 2**21

Floats = npt.NDArray[np.float64]


def percentile_interval(
    score: Callable[[Floats], Floats], num_samples: int, num_columns: int, level: float
) -> tuple[float, float] | None:
    """Return the percentile interval of a score over resampled samples.

    Args:
        score: maps how often each sample was drawn, ``[S, N]``, to scores ``[S]``; NaN where a score is not defined.
        num_samples: N.
        num_columns: values of a sample that the score looks at: classes or outputs.
        level: of the interval.

    Returns:
        Low and high. None for fewer than two samples, for data so large that `LEAST_RESAMPLES` take too long, and where all resamples
        have one score: an interval without width would claim certainty.
    """
    resamples = min(RESAMPLES, MOST_VALUES // max(1, num_samples * num_columns))
    if num_samples < 2 or resamples < LEAST_RESAMPLES:
        return None
    scores = np.concatenate([score(drawn) for drawn in _draws(num_samples, resamples)])
    scores = scores[np.isfinite(scores)]
    if len(scores) < LEAST_RESAMPLES or np.ptp(scores) == 0:
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(scores, (tail, 1 - tail))
    return float(low), float(high)


def _draws(num_samples: int, resamples: int) -> Iterator[Floats]:
    rng = np.random.Generator(np.random.PCG64(0))
    step = max(1, BLOCK_VALUES // num_samples)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        rows = rng.integers(0, num_samples, (size, num_samples))
        rows += num_samples * np.arange(size)[:, None]
        counts = np.bincount(rows.ravel(), minlength=size * num_samples)
        yield counts.reshape(size, num_samples).astype(np.float64)


def r2_scores(predicted: Floats, actual: Floats) -> Callable[[Floats], Floats]:
    """Return the function for R2, the mean over outputs; predictions and targets are ``[N, O]``."""
    errors = np.square(predicted - actual)
    centered = actual - actual.mean(0)  # sums of squares of large numbers would lose digits

    def scores(drawn: Floats) -> Floats:
        number, total = drawn.sum(1, keepdims=True), drawn @ centered
        spread = drawn @ np.square(centered) - total**2 / number
        error = drawn @ errors
        # Targets whose spread is rounding are constant. As scikit-learn scores these: 1 if they are met, else 0.
        constant = spread <= 1e-12 * (drawn @ np.square(centered)) + np.finfo(np.float64).tiny
        shares = np.where(constant, error > 0, error / np.where(constant, 1.0, spread))
        found: Floats = (1 - shares).mean(1)
        return found

    return scores


def rank_correlations(predicted: Floats, actual: Floats) -> Callable[[Floats], Floats]:
    """Return the function for Spearman's correlation, the mean over outputs; predictions and targets are ``[N, O]``."""
    orders = [
        [np.unique(column, return_inverse=True)[1] for column in side.T] for side in (predicted, actual)
    ]

    def scores(drawn: Floats) -> Floats:
        found = []
        for a, b in zip(*orders, strict=True):
            ranks = [_ranks(drawn, values) for values in (a, b)]
            number = drawn.sum(1, keepdims=True)
            x, y = (rank - (drawn * rank).sum(1, keepdims=True) / number for rank in ranks)
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append(
                    (drawn * x * y).sum(1) / np.sqrt((drawn * x * x).sum(1) * (drawn * y * y).sum(1))
                )
        mean: Floats = np.mean(found, axis=0)
        return mean

    return scores


def _ranks(drawn: Floats, values: npt.NDArray[np.int64]) -> Floats:
    """Return the rank of every sample among the drawn ones, ``[S, N]``; equal values share the mean of their ranks."""
    tied = np.zeros((len(drawn), int(values.max()) + 1))
    for row, counts in zip(tied, drawn, strict=True):
        row += np.bincount(values, counts, len(row))
    ranks: Floats = (np.cumsum(tied, 1) - (tied - 1) / 2)[:, values]
    return ranks


def macro_f1_scores(
    predicted: npt.NDArray[np.bool_], actual: npt.NDArray[np.bool_], *, present_only: bool
) -> Callable[[Floats], Floats]:
    """Return the function for macro F1; predictions and targets are ``[N, C]``.

    Args:
        predicted: whether a class is predicted.
        actual: whether a sample has a class.
        present_only: whether the mean is over classes that samples have; else over those that are predicted, too.
    """
    hits, marked, has = (part.astype(np.float64) for part in (predicted & actual, predicted, actual))

    def scores(drawn: Floats) -> Floats:
        right, number, known = drawn @ hits, drawn @ marked + drawn @ has, drawn @ has
        counted = known > 0 if present_only else number > 0
        f1 = np.divide(2 * right, number, out=np.zeros_like(right), where=number > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: Floats = np.where(counted, f1, 0).sum(1) / counted.sum(1)
        return mean

    return scores


def micro_f1_scores(
    predicted: npt.NDArray[np.bool_], actual: npt.NDArray[np.bool_]
) -> Callable[[Floats], Floats]:
    """Return the function for micro F1; predictions and targets are ``[N, C]``."""
    right = (predicted & actual).sum(1).astype(np.float64)
    number = (predicted.sum(1) + actual.sum(1)).astype(np.float64)

    def scores(drawn: Floats) -> Floats:
        marked = drawn @ number
        f1: Floats = np.divide(2 * (drawn @ right), marked, out=np.zeros(len(drawn)), where=marked > 0)
        return f1

    return scores


def mean_average_precisions(outputs: Floats, actual: npt.NDArray[np.bool_]) -> Callable[[Floats], Floats]:
    """Return the function for mean average precision (scikit-learn's, without interpolation); both are ``[N, C]``."""
    columns = []
    for values, has in zip(outputs.T, actual.T, strict=True):
        order = np.argsort(-values, kind="stable")
        # Samples with equal outputs pass a threshold together.
        ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
        columns.append((order, ends, has[order].astype(np.float64)))

    def scores(drawn: Floats) -> Floats:
        found = []
        for order, ends, has in columns:
            counts = drawn[:, order]
            right, passed = np.cumsum(counts * has, 1)[:, ends], np.cumsum(counts, 1)[:, ends]
            precision = np.divide(right, passed, out=np.zeros_like(right), where=passed > 0)
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append((np.diff(right, axis=1, prepend=0) * precision).sum(1) / right[:, -1])
        known = np.isfinite(found)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: Floats = np.where(known, found, 0).sum(0) / known.sum(0)
        return mean

    return scores
