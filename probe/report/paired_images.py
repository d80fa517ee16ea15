"""Differences of two heads over the same test images: how far other test images might change them.

Every test image gives a difference: of hits, where the classes weigh alike, as balanced accuracy has it, or of errors of real values. Whether the difference may be chance is
tested by flipping the signs of the images' differences: if neither head were better, each image might as well have favored the other
head. With one seed and classes of equal size this is McNemar's exact test (1947).

The interval is the normal one with the variance under the same hypothesis and one more image that favors one of the heads, as
Agresti and Min (2005) add it to McNemar's: two heads that agree on all test images have an interval with a width, too.

Shapes: N test images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.probing.report.groups import Group
from featcache.probing.results.predictions import (
    PREDICTIONS_FILE,
    NumberPredictions,
    TestPredictions,
    read_numbers,
    read_predictions,
)
from featcache.probing.results.rows import ResultRow
from featcache.probing.scoring.wilson import LEVEL, normal_quantile

FLIPS = 9999
# With more images that tell the heads apart, the sum of their differences is as good as normal.
MOST_FLIPPED = 1000
HIT_SCORES, ERROR_SCORES = ("balanced_accuracy", "top1"), ("r2", "mse", "mae")
PAIRED_SCORES = (*HIT_SCORES, *ERROR_SCORES)
"""Scores whose differences are means over test images: of hits, or of errors (of R2, in units of the targets' spread)."""


@dataclass(frozen=True)
class ImageDifference:
    """A difference of two heads over the same test images."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval."""
    p_value: float
    """Two-sided, that neither head is better on other test images."""
    number: int
    """N."""


@dataclass
class PairedImages:
    """Compares groups of runs by the predictions that are kept beside their heads."""

    folder: Path
    """Of the results."""
    _read: dict[str, TestPredictions | None] = field(default_factory=dict, repr=False)
    _numbers: dict[str, NumberPredictions | None] = field(default_factory=dict, repr=False)

    def compare(self, group: Group, other: Group) -> ImageDifference | None:
        """Compare two groups over the seeds that both have, seed by seed.

        Returns:
            None for a score that is no mean over images, and where predictions are missing or of different test images.

        Raises:
            CacheError: a file of predictions is damaged.
        """
        if group.score not in PAIRED_SCORES or group.score != other.score:
            return None
        ours, theirs = _by_seed(group), _by_seed(other)
        shared = [seed for seed in ours if seed in theirs]
        if group.score in ERROR_SCORES:
            return self._compare_errors([(ours[seed], theirs[seed]) for seed in shared], group.score)
        pairs = [(self._predictions(ours[seed]), self._predictions(theirs[seed])) for seed in shared]
        first = pairs[0][0] if pairs else None
        if first is None or not len(first.right):
            return None
        differences = np.zeros(len(first.right))
        for mine, other_one in pairs:
            if mine is None or other_one is None:
                return None
            if not mine.sample_ids == other_one.sample_ids == first.sample_ids:
                return None
            differences += mine.right.astype(float) - other_one.right
        weights = image_weights(first.labels, balanced=group.score == "balanced_accuracy")
        return difference(differences / len(pairs), weights)

    def _compare_errors(
        self, pairs: Sequence[tuple[ResultRow, ResultRow]], score: str
    ) -> ImageDifference | None:
        total, ids = None, None
        for ours, theirs in pairs:
            mine, others = self._numbers_of(ours), self._numbers_of(theirs)
            if mine is None or others is None or len(mine.targets) < 2:
                return None
            ids = mine.sample_ids if ids is None else ids
            if not mine.sample_ids == others.sample_ids == ids or mine.targets.shape != others.targets.shape:
                return None
            gained = error_gains(mine.targets, mine.predicted, others.predicted, score)
            total = gained if total is None else total + gained
        if total is None or not np.isfinite(total).all():
            return None
        values = total / len(pairs)
        # No bound is known for an error, so one more image favors a head by as much as images do on average.
        unit = float(np.sqrt(np.square(values).mean()))
        return difference(values, np.full(len(values), 1 / len(values)), unit=unit)

    def _numbers_of(self, row: ResultRow) -> NumberPredictions | None:
        if row.folder not in self._numbers:
            self._numbers[row.folder] = read_numbers(self.folder / row.folder / PREDICTIONS_FILE)
        return self._numbers[row.folder]

    def _predictions(self, row: ResultRow) -> TestPredictions | None:
        if row.folder not in self._read:
            self._read[row.folder] = read_predictions(self.folder / row.folder / PREDICTIONS_FILE)
        return self._read[row.folder]


def _by_seed(group: Group) -> Mapping[tuple[int, int], ResultRow]:
    return {(row.draw, row.seed): row for row in group.rows if (row.draw, row.seed) in group.by_seed}


def image_weights(labels: Sequence[str], *, balanced: bool) -> npt.NDArray[np.float64]:
    """Return the weight of every image ``[N]``, with sum 1: alike, or so that all classes weigh alike."""
    if not balanced:
        return np.full(len(labels), 1 / len(labels))
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: npt.NDArray[np.float64] = 1 / (len(counts) * counts[classes])
    return weights


def error_gains(
    targets: npt.NDArray[np.float64],
    ours: npt.NDArray[np.float64],
    theirs: npt.NDArray[np.float64],
    score: str,
) -> npt.NDArray[np.float64]:
    """Return what every image adds to the difference of a score, ``[N]``, so that their mean is the difference.

    Args:
        targets: ``[N, O]``.
        ours: predictions of the first head, ``[N, O]``.
        theirs: predictions of the other head, ``[N, O]``.
        score: one of `ERROR_SCORES`.
    """
    measure = np.abs if score == "mae" else np.square
    found: npt.NDArray[np.float64] = measure(ours - targets) - measure(theirs - targets)
    if score == "r2":
        variance = targets.var(0)
        # A constant target has no part in it: R2 is 0 or 1 there, and no sum over images.
        found = np.divide(-found, variance, out=np.full_like(found, np.nan), where=variance > 0)
    gains: npt.NDArray[np.float64] = found.mean(1)
    return gains


def difference(
    differences: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    level: float = LEVEL,
    unit: float | None = None,
) -> ImageDifference:
    """Return the weighted mean of the images' differences with its interval and p value.

    Args:
        differences: of every image, ``[N]``; from -1 to 1 if no unit is given.
        weights: of every image, ``[N]``, with sum 1.
        level: of the interval.
        unit: difference of an image that favors one head, for differences without bounds.
    """
    parts = differences * weights
    mean = float(parts.sum())
    # An image of average weight: the weights of N alike images have squares with the sum 1 / N.
    one_image = float(np.square(weights).sum()) / len(weights) * (1.0 if unit is None else unit**2)
    reach = normal_quantile(level) * float(np.sqrt(np.square(parts).sum() + one_image))
    low, high = mean - reach, mean + reach
    if unit is None:
        low, high = max(-1.0, low), min(1.0, high)
    return ImageDifference(mean, low, high, _p_value(parts[parts != 0]), len(weights))


def _p_value(parts: npt.NDArray[np.float64]) -> float:
    """Return the share of flips of signs whose sum is at least as far from 0; parts ``[M]`` are not 0."""
    if not len(parts):
        return 1.0
    size = np.abs(parts)
    total = abs(float(parts.sum())) * (1 - 1e-9)  # equal sums count, whatever their rounding
    if np.ptp(size) <= 1e-9 * size.max():
        from scipy.special import bdtrc

        # All weigh alike: the number of images that favor one head is binomial.
        favoring = round((len(size) + total / size[0]) / 2)
        return min(1.0, 2 * float(bdtrc(favoring - 1, len(size), 0.5)) if favoring else 1.0)
    if len(size) > MOST_FLIPPED:
        from scipy.special import ndtr

        return float(2 * ndtr(-total / np.sqrt(np.square(size).sum())))
    rng = np.random.Generator(np.random.PCG64(0))
    signs = rng.integers(0, 2, (FLIPS, len(size)), dtype=np.int8)
    sums = np.abs((2.0 * signs - 1) @ size)
    return float((1 + (sums >= total).sum()) / (1 + FLIPS))
