"""Intervals of shares over test samples: Wilson's score interval, and its stratified form for balanced accuracy.

Wilson's interval (1927) has the right coverage for small numbers and for shares near 0 and 1, where the bootstrap and the normal
approximation give intervals of no width. Balanced accuracy is a mean of shares, one a class. Its interval is Wilson's with an effective
number of samples, as Kott and Carr (1997) take it for samples in strata: the number with which a plain share would have the same variance.

Shapes: C classes.
"""

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
FEW_SAMPLES, MANY_CLASSES = 2, 10
"""A class with so few samples says nothing of its variance; so many of these classes say together what one has on average."""


def normal_quantile(level: float) -> float:
    """Return the deviations of a normal distribution between which a share `level` lies: 1.96 for 0.95."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


def wilson_interval(share: float, number: float, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's interval of a share.

    Args:
        share: from 0 to 1.
        number: samples that it is a share of, above 0; an effective number may have a fraction.
        level: of the interval.
    """
    square = normal_quantile(level) ** 2
    center = (share + square / (2 * number)) / (1 + square / number)
    reach = square * (share * (1 - share) / number + square / (4 * number**2))
    half = float(np.sqrt(max(0.0, reach))) / (1 + square / number)
    # Rounding must not exclude the share itself.
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def balanced_accuracy_interval(
    right: npt.NDArray[np.integer], counts: npt.NDArray[np.integer], level: float = LEVEL
) -> tuple[float, float]:
    """Return the stratified Wilson interval of balanced accuracy.

    The variance of a class's recall is estimated with the recall moved towards the mean recall by the weight of one sample, because
    a recall of 0 or 1 would have none. Where fewer than ten classes have just one or two samples, nothing tells whether their recalls
    are near the mean, and the largest possible variance is taken for them.

    Args:
        right: samples of each class that are predicted right, ``[C]``.
        counts: samples of each class, ``[C]``; classes without samples are left out.
        level: of the interval.
    """
    present = counts > 0
    n, hits = counts[present].astype(np.float64), right[present].astype(np.float64)
    score = float((hits / n).mean())
    moved = (hits + score) / (n + 1)
    # If all classes had one recall, this would be unbiased: moved recalls vary by n / (n + 1)^2 of a single sample's variance.
    variance = moved * (1 - moved) / n / (1 - n / (n + 1) ** 2)
    few = n <= FEW_SAMPLES
    if few.sum() < MANY_CLASSES:
        variance[few] = 1 / (4 * n[few])
    mean_variance = float(variance.sum()) / len(n) ** 2
    single = score * (1 - score)
    # Where all are right or all are wrong, the number that equal recalls would give.
    number = (
        single / mean_variance if single > 0 and mean_variance > 0 else len(n) ** 2 / float((1 / n).sum())
    )
    return wilson_interval(score, number, level)
