"""Reproducible choices of samples: the 75/25 split of a dataset that has none, and a stratified part of one.

The order within a class is that of SHA-256 over seed and sample id, so it depends on no library's random numbers,
and adding a file moves at most one other between the parts.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from featcache.extract.sources.base import Sample
from featcache.store.errors import DatasetError, RequestError

TEST_FRACTION = Fraction(1, 4)


def split_by_class(
    samples: Sequence[Sample], class_names: Sequence[str], seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Split 75/25 within every class; both parts keep the order of `samples`.

    Every class of at least two samples is in both parts.

    Raises:
        DatasetError: a class has a single sample.
    """
    test: set[str] = set()
    for label, members in _by_class(samples).items():
        if len(members) < 2:
            raise DatasetError(
                f"class {class_names[label]!r} has a single image, so it cannot be in both train and test; "
                "add images, remove the class, or provide train/ and test/ folders"
            )
        count = max(1, round(len(members) * TEST_FRACTION))
        test.update(sample.id for sample in _shuffled(members, seed)[:count])
    return [s for s in samples if s.id not in test], [s for s in samples if s.id in test]


def stratified_part(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """Return at most `limit` samples, classes in proportion and at least one of each, in the order of `samples`.

    Raises:
        RequestError: `limit` is smaller than the number of classes.
    """
    if limit >= len(samples):
        return list(samples)
    classes = _by_class(samples)
    if limit < len(classes):
        raise RequestError(
            f"limit {limit} is smaller than the number of classes ({len(classes)}); give at least {len(classes)}"
        )
    counts = _proportional({label: len(members) for label, members in classes.items()}, limit)
    kept = {
        sample.id
        for label, members in classes.items()
        for sample in _shuffled(members, seed)[: counts[label]]
    }
    return [sample for sample in samples if sample.id in kept]


def _by_class(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    classes: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        classes[sample.label].append(sample)
    return dict(sorted(classes.items()))


def _shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    return sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}:{sample.id}".encode()).digest())


def _proportional(sizes: dict[int, int], total: int) -> dict[int, int]:
    """Largest remainders over what is left once every class has one; no class gets more than it has."""
    rest, everything = total - len(sizes), sum(sizes.values()) - len(sizes)
    shares = {label: Fraction(rest * (size - 1), max(everything, 1)) for label, size in sizes.items()}
    counts = {label: 1 + int(share) for label, share in shares.items()}
    by_remainder = sorted(sizes, key=lambda label: (int(shares[label]) - shares[label], label))
    for label in by_remainder[: total - sum(counts.values())]:
        counts[label] += 1
    return counts
