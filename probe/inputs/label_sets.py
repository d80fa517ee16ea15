"""Divide samples of several labels so that every part has its share of each label, the rare ones first.

Source: iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data").

Shapes: N samples, C labels, K parts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featcache.probing.inputs.split import Rows, by_fold
from featcache.store.errors import RequestError

Sets = npt.NDArray[np.generic]


def iterative_parts(sets: Sets, shares: Sequence[float], seed: int) -> Rows:
    """Give every sample to one of K parts.

    The label with the fewest remaining samples comes first. Each of its samples goes to the part that lacks most of that label; ties
    go to the part that lacks most samples, then by lot. Samples without labels come last.

    Args:
        sets: ``[N, C]``, 0 and 1.
        shares: share of every part, ``[K]``, with sum 1.
        seed: the same seed gives the same parts.

    Returns:
        The part of every sample, ``[N]``.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    marked = np.asarray(sets) != 0
    share = np.asarray(shares, np.float64)
    left = marked.sum(0)
    wanted, room = np.outer(share, left), share * len(marked)
    part = np.full(len(marked), -1)

    def deal(row: int, label: int | None) -> None:
        appeal = room if label is None else wanted[:, label]
        best = np.flatnonzero(appeal == appeal.max())
        best = best[room[best] == room[best].max()]
        chosen = best[0] if len(best) == 1 else rng.choice(best)
        part[row] = chosen
        wanted[chosen, marked[row]] -= 1
        room[chosen] -= 1

    while left.any():
        label = int(np.where(left > 0, left, len(marked) + 1).argmin())
        rows = rng.permutation(np.flatnonzero(marked[:, label] & (part < 0)))
        for row in rows.tolist():
            deal(row, label)
        left -= marked[rows].sum(0)
    for row in rng.permutation(np.flatnonzero(part < 0)).tolist():
        deal(row, None)
    return part


def label_set_holdout(sets: Sets, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Hold out about `fraction` of the samples, label by label.

    A label of three or more samples has at least one held out, and no label loses all of its samples. If labels are so rare that this
    gives less than half of the requested number, further samples are held out by lot.

    Returns:
        Training rows and held-out rows, both sorted int64; no held-out rows where there are too few samples of every label.

    Raises:
        RequestError: `fraction` is out of range.
    """
    if not 0 < fraction < 1:
        raise RequestError(f"the held-out fraction must lie between 0 and 1, not {fraction}")
    held = iterative_parts(sets, (1 - fraction, fraction), seed) == 1
    wanted = max(1, round(fraction * len(held)))
    if 2 * held.sum() < wanted:
        _hold_more(np.asarray(sets) != 0, held, wanted, seed)
    return np.flatnonzero(~held).astype(np.int64), np.flatnonzero(held).astype(np.int64)


def _hold_more(marked: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_], wanted: int, seed: int) -> None:
    """Hold out samples by lot until `wanted` are held out, as long as every label keeps one."""
    left = marked[~held].sum(0)
    for row in np.random.Generator(np.random.PCG64(seed)).permutation(np.flatnonzero(~held)).tolist():
        if held.sum() >= wanted or (~held).sum() <= 2:  # a training needs two
            return
        if (left[marked[row]] > 1).all():
            held[row] = True
            left -= marked[row]


def label_set_folds(sets: Sets, number: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Divide the samples into folds, label by label; see `featcache.probing.inputs.split.stratified_folds`."""
    parts = iterative_parts(sets, [1 / max(number, 1)] * max(number, 1), seed)
    return by_fold(parts, number, len(parts))
