"""Differences of two heads over the same test images: how far other test images might change them.

Every test image gives a difference, and the classes weigh alike, as balanced accuracy has it. Whether the difference may be chance is
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
from featcache.probing.results.predictions import PREDICTIONS_FILE, TestPredictions, read_predictions
from featcache.probing.results.rows import ResultRow
from featcache.probing.scoring.wilson import LEVEL, normal_quantile

FLIPS = 9999
# With more images that tell the heads apart, the sum of their differences is as good as normal.
MOST_FLIPPED = 1000
PAIRED_SCORES = ("balanced_accuracy", "top1")
"""Scores that are means over test images."""


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


def difference(
    differences: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], level: float = LEVEL
) -> ImageDifference:
    """Return the weighted mean of the images' differences with its interval and p value.

    Args:
        differences: of every image, ``[N]``, from -1 to 1.
        weights: of every image, ``[N]``, with sum 1.
        level: of the interval.
    """
    parts = differences * weights
    mean = float(parts.sum())
    # An image of average weight: the weights of N alike images have squares with the sum 1 / N.
    one_image = float(np.square(weights).sum()) / len(weights)
    reach = normal_quantile(level) * float(np.sqrt(np.square(parts).sum() + one_image))
    return ImageDifference(
        mean, max(-1.0, mean - reach), min(1.0, mean + reach), _p_value(parts[parts != 0]), len(weights)
    )


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
