"""Name classes that are given as integers without names, and report numbers that do not occur."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store.errors import DatasetError
from featcache.store.targets import MAX_CLASSES, MAX_UNUSED_CLASSES

Labels = npt.NDArray[Any]
MAX_LABEL = 2**62
"""A number above every class index; labels are stored as int64."""


@dataclass(frozen=True)
class NumberedClasses:
    """Labels and the names of their classes."""

    labels: list[Labels]
    """Labels of every part, ``[N]``, unchanged or renumbered."""
    names: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    """Notes on the numbering; each continues a sentence that the caller begins."""


def number_classes(labels: Sequence[Labels], where: str) -> NumberedClasses:
    """Name classes by the integers that stand for them.

    Labels are kept, so classes without a sample exist as well. If there were more than `MAX_UNUSED_CLASSES` of these, the
    labels that occur are renumbered, and the old numbers become their names.

    Args:
        labels: non-negative integers of every part, ``[N]`` each, at least one in total.
        where: name of the dataset in errors.

    Raises:
        DatasetError: there are more classes than a cache can have.
    """
    numbers = np.unique(np.concatenate([np.unique(part) for part in labels]))
    count, unused = int(numbers[-1]) + 1, int(numbers[-1]) + 1 - len(numbers)
    if len(numbers) > MAX_CLASSES:
        raise DatasetError(
            f"{where}: {len(numbers)} different labels would make as many classes, at most {MAX_CLASSES} are possible; are they "
            "indices of classes?"
        )
    if unused > MAX_UNUSED_CLASSES:
        names = tuple(map(str, numbers.tolist()))
        said = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        anew = [np.searchsorted(numbers, part).astype(part.dtype) for part in labels]
        note = (
            f"labels go up to {count - 1}, and {len(numbers)} occur: these are numbered from 0 in the cache, and their classes "
            f"are called {said}"
        )
        return NumberedClasses(anew, names, [note])
    notes = []
    if unused:
        missing = np.setdiff1d(np.arange(count), numbers, assume_unique=True)
        shown = ", ".join(map(str, missing[:10].tolist())) + (", ..." if unused > 10 else "")
        notes.append(f"no sample has label {shown}: {unused} of {count} classes are empty")
    return NumberedClasses(list(labels), tuple(map(str, range(count))), notes)
