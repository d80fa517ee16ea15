"""Reproducible choices of samples: the 75/25 split of a dataset that has none, and a stratified part of one.

The order within a stratum is that of SHA-256 over seed and sample id, so it depends on no library's random numbers,
and adding a file moves at most one other between the parts. Shapes: N samples.
"""

import hashlib
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.base import Labels, Rows
from featcache.store.errors import RequestError
from featcache.store.targets import MULTI_LABEL, SINGLE_LABEL, UNLABELED

TEST_FRACTION = Fraction(1, 4)
QUANTILES = 10
"""Strata of a regression, fewer where there would be less than four samples in each."""

Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def order_keys(ids: Iterable[str], seed: int) -> Keys:
    """Return a number for every id, ``[N]``: the first eight bytes of SHA-256 over ``seed:id``; smaller ones come first."""
    prefix = hashlib.sha256(f"{seed}:".encode())
    digests = []
    for sample_id in ids:
        digest = prefix.copy()
        digest.update(sample_id.encode())
        digests.append(digest.digest()[:8])
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def strata_of(labels: Labels, target_type: str) -> Rows:
    """Return the stratum of every sample, ``[N]``, which parts keep in proportion.

    The class; of several classes the rarest, counted over all samples (one more stratum for those of none); of real
    values the tenth of the first quantity. Samples without labels are a single stratum.
    """
    if target_type == UNLABELED:
        return np.zeros(len(labels), np.int64)
    if target_type == SINGLE_LABEL:
        return np.asarray(labels, np.int64)
    if target_type == MULTI_LABEL:
        rarity = np.argsort(labels.sum(0, dtype=np.int64), kind="stable")
        first = labels[:, rarity].argmax(1)
        return np.asarray(np.where(labels.any(1), rarity[first], labels.shape[1]), np.int64)
    ranks = np.argsort(np.argsort(labels[:, 0], kind="stable"), kind="stable")
    count = min(QUANTILES, max(1, len(labels) // 4))
    parts: Rows = ranks * count // max(len(labels), 1)
    return parts


def split_off_test(keys: Keys, strata: Rows) -> Mask:
    """Return a mask ``[N]`` of the test part: a quarter of every stratum, but one at least of each that has two."""
    sizes = np.bincount(strata)
    counts = np.maximum(1, np.rint(sizes * float(TEST_FRACTION)).astype(np.int64))
    counts[sizes < 2] = 0
    return _first_of_each(keys, strata, counts)


def split_off_test_groups(groups: Rows, group_names: Iterable[str], strata: Rows, seed: int) -> Mask:
    """Return a mask ``[N]`` of the test part, keeping the samples of one group together.

    Groups are taken in the order of their keys; one goes to the test part if that brings the strata nearer to a quarter
    of each, and leaves in train something of every stratum.

    Args:
        groups: index of the group of every sample, ``[N]``.
        group_names: names of the groups, in index order.
        strata: ``[N]``.
        seed: of the order.
    """
    num_groups, num_strata = int(groups.max()) + 1, int(strata.max()) + 1
    sizes = np.bincount(strata, minlength=num_strata)
    target = sizes * float(TEST_FRACTION)
    weight = 1 / np.maximum(sizes, 1)
    by_group = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups, minlength=num_groups))
    test, taken = np.zeros(num_groups, np.bool_), np.zeros(num_strata, np.int64)
    for group in np.argsort(order_keys(group_names, seed), kind="stable").tolist():
        members = by_group[ends[group - 1] if group else 0 : ends[group]]
        present, counts = np.unique(strata[members], return_counts=True)
        before, after = (
            np.abs(taken[present] - target[present]),
            np.abs(taken[present] + counts - target[present]),
        )
        nearer = ((before - after) * weight[present]).sum() > 0
        if nearer and (taken[present] + counts < sizes[present]).all():
            test[group] = True
            taken[present] += counts
    return test[groups]


def stratified_part(keys: Keys, strata: Rows, limit: int, *, each: bool = True) -> Mask:
    """Return a mask ``[N]`` of a part of at most `limit` samples, with strata in proportion.

    Args:
        keys: as from `order_keys`.
        strata: ``[N]``.
        limit: how many.
        each: whether there must be one of each stratum at least.

    Raises:
        RequestError: `each`, and `limit` is smaller than the number of strata.
    """
    if limit >= len(keys):
        return np.ones(len(keys), np.bool_)
    sizes = {
        int(stratum): int(size) for stratum, size in zip(*np.unique(strata, return_counts=True), strict=True)
    }
    if limit < len(sizes):
        if each:
            raise RequestError(
                f"limit {limit} is smaller than the number of classes ({len(sizes)}); give at least {len(sizes)}"
            )
        strata, sizes = np.zeros_like(strata), {0: len(strata)}
    counts = np.zeros(int(strata.max()) + 1, np.int64)
    for stratum, count in _proportional(sizes, limit).items():
        counts[stratum] = count
    return _first_of_each(keys, strata, counts)


def _first_of_each(keys: Keys, strata: Rows, counts: Rows) -> Mask:
    """Return the first ``counts[s]`` samples of every stratum s in the order of their keys."""
    order = np.lexsort((keys, strata))
    sizes = np.bincount(strata, minlength=len(counts))
    ranks = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.empty(len(keys), np.bool_)
    chosen[order] = ranks < counts[strata[order]]
    return chosen


def _proportional(sizes: dict[int, int], total: int) -> dict[int, int]:
    """Return the largest remainders over what is left once every stratum has one; none gets more than it has."""
    rest, everything = total - len(sizes), sum(sizes.values()) - len(sizes)
    shares = {stratum: Fraction(rest * (size - 1), max(everything, 1)) for stratum, size in sizes.items()}
    counts = {stratum: 1 + int(share) for stratum, share in shares.items()}
    by_remainder = sorted(sizes, key=lambda stratum: (int(shares[stratum]) - shares[stratum], stratum))
    for stratum in by_remainder[: total - sum(counts.values())]:
        counts[stratum] += 1
    return counts
