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


def stratified_folds(labels: npt.NDArray[np.integer], number: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Divide the samples into folds, class by class, of which each is held out once.

    The samples of a class are dealt out in turn, each class going on where the last one stopped, so folds differ by at most one
    sample. The only sample of a class is never held out: no class is without samples to train on.

    Args:
        labels: class index per sample, shape ``[N]``.
        number: of folds, at least 2.
        seed: the same seed gives the same folds.

    Returns:
        For every fold, training rows and held-out rows, both sorted int64.

    Raises:
        RequestError: fewer than 2 folds, or fewer samples to hold out than folds.
    """
    labels = np.asarray(labels)
    rng = np.random.Generator(np.random.PCG64(seed))
    fold = np.full(len(labels), -1)
    dealt = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            fold[rows] = (dealt + np.arange(len(rows))) % number if number > 0 else 0
            dealt += len(rows)
    return by_fold(fold, number, dealt)


def plain_folds(num_samples: int, number: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Divide samples without classes into folds; see `stratified_folds`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    fold = np.arange(num_samples) % max(number, 1)
    return by_fold(rng.permutation(fold), number, num_samples)


def plain_holdout(num_samples: int, fraction: float, seed: int, least: int = 0) -> tuple[Rows, Rows]:
    """Hold out ``max(round(fraction * N), least)`` samples by lot, but never the last one; see `stratified_holdout`."""
    if not 0 < fraction < 1:
        raise RequestError(f"the held-out fraction must lie between 0 and 1, not {fraction}")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(num_samples)
    number = min(max(round(fraction * num_samples), least), num_samples - 1)
    return np.sort(order[number:]), np.sort(order[:number])


def draw_shots(labels: npt.NDArray[np.integer], shots: int, draw: int) -> Rows:
    """Draw samples of every class for a few-shot run: `shots`, or all of a class that has fewer.

    A draw of fewer shots is part of the same draw of more.

    Args:
        labels: class index per sample, shape ``[N]``.
        shots: samples per class, at least 1.
        draw: the same number gives the same samples.

    Returns:
        Sorted int64 rows.

    Raises:
        RequestError: fewer than 1 shot.
    """
    if shots < 1:
        raise RequestError(f"shots are samples of every class, at least 1, not {shots}")
    rng = np.random.Generator(np.random.PCG64(draw))
    rows = [
        rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(np.asarray(labels))
    ]
    return np.sort(np.concatenate(rows)).astype(np.int64)


def by_fold(fold: Rows, number: int, held: int) -> list[tuple[Rows, Rows]]:
    """Return training rows and held-out rows of every fold; `fold` is the fold of every sample, -1 if it is never held out.

    Raises:
        RequestError: fewer than 2 folds, or fewer samples to hold out than folds.
    """
    if number < 2 or held < number:
        raise RequestError(
            f"{held} samples that can be held out do not make {number} folds; take at least 2 folds, and as many samples"
        )
    return [
        (np.flatnonzero(fold != index).astype(np.int64), np.flatnonzero(fold == index).astype(np.int64))
        for index in range(number)
    ]
