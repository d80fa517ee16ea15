"""The held-out part of the train split, on which a sweep chooses."""

import numpy as np
import numpy.typing as npt

from featcache.store.errors import RequestError

Rows = npt.NDArray[np.int64]


def stratified_holdout(labels: npt.NDArray[np.integer], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Hold out `fraction` of the samples, class by class.

    scikit-learn's stratified splits refuse classes with a single sample and held-out parts smaller than the
    number of classes; both occur in few-shot datasets. Here ``round(fraction * N)`` samples are held out: of
    each class its share rounded down, then one more where the remainders are largest (ties by lot). A class
    never loses its last sample from the training part, so the held-out part is smaller where most classes have
    a single one.

    Args:
        labels: class index per sample, shape ``[N]``.
        fraction: between 0 and 1, exclusive.
        seed: the same seed gives the same split.

    Returns:
        Training rows and held-out rows, both sorted int64.

    Raises:
        RequestError: `fraction` is out of range, or `labels` is not a vector of integers.
    """
    labels = np.asarray(labels)
    if not 0 < fraction < 1:
        raise RequestError(f"the held-out fraction must lie between 0 and 1, not {fraction}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise RequestError(f"labels must be a vector of integers, not {labels.dtype} of shape {labels.shape}")
    rng = np.random.Generator(np.random.PCG64(seed))
    _, class_of_row, counts = np.unique(labels, return_inverse=True, return_counts=True)
    held_counts = _held_counts(counts, fraction, rng)
    held = np.zeros(len(labels), dtype=bool)
    for index, count in enumerate(held_counts):
        held[rng.permutation(np.flatnonzero(class_of_row == index))[:count]] = True
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def _held_counts(counts: npt.NDArray[np.int64], fraction: float, rng: np.random.Generator) -> Rows:
    shares = fraction * counts
    held: Rows = np.floor(shares).astype(np.int64)
    missing = round(fraction * int(counts.sum())) - int(held.sum())
    # A stable sort of shuffled classes: equal remainders (rounded, 0.2 * 15 is not quite 3) fall by lot.
    lot = rng.permutation(len(counts))
    order = lot[np.argsort(-np.round((shares - held)[lot], 9), kind="stable")]
    while missing > 0 and (held < counts - 1).any():
        takers = order[(held < counts - 1)[order]][:missing]
        held[takers] += 1
        missing -= len(takers)
    return held
