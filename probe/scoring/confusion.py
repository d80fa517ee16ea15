"""Confusion matrices as pairs of classes that occur: of C x C pairs, at most N occur among N samples.

Shapes: N samples, C classes, E pairs that occur.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store.errors import CacheError
from featcache.store.files import field

DENSE_CLASSES = 256
"""Largest number of classes for which the full matrix is written; with 5,001 classes it has 25 million numbers, nearly all 0."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Confusion:
    """Number of samples for each pair of label and predicted class."""

    num_classes: int
    """Number of classes C."""
    labels: Indices
    """``[E]``, ascending."""
    predicted: Indices
    """``[E]``, ascending among pairs of one label."""
    counts: Indices
    """``[E]``, each at least 1."""

    @classmethod
    def of(cls, labels: Indices, predicted: Indices, num_classes: int) -> "Confusion":
        """Count the pairs of `labels` and `predicted`, ``[N]`` each, from 0 to C - 1."""
        pairs, counts = np.unique(labels * num_classes + predicted, return_counts=True)
        return cls(num_classes, pairs // num_classes, pairs % num_classes, counts.astype(np.int64))

    def dense(self) -> Indices:
        """Return the matrix, ``[label][predicted]``, ``[C, C]``."""
        matrix = np.zeros((self.num_classes, self.num_classes), np.int64)
        matrix[self.labels, self.predicted] = self.counts
        return matrix

    def to_json(self) -> list[list[int]] | dict[str, Any]:
        """Return the matrix as lists, or beyond `DENSE_CLASSES` classes the pairs that occur, in three lists."""
        if self.num_classes <= DENSE_CLASSES:
            rows: list[list[int]] = self.dense().tolist()
            return rows
        names = ("label", "predicted", "count")
        columns = (column.tolist() for column in (self.labels, self.predicted, self.counts))
        return {"classes": self.num_classes, **dict(zip(names, columns, strict=True))}

    @classmethod
    def from_json(cls, document: object, where: str) -> "Confusion":
        """Read either form back; earlier versions wrote lists for any number of classes.

        Raises:
            CacheError: the value has neither form; `where` names the file.
        """
        try:
            if isinstance(document, list):
                matrix = np.array(document)
                if matrix.dtype.kind not in "iu":
                    raise ValueError
                labels, predicted = matrix.nonzero()
                found = cls(len(matrix), labels, predicted, matrix[labels, predicted])
                fits = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
            else:
                found = cls._of_pairs(document if isinstance(document, Mapping) else {}, where)
                shapes = {part.shape for part in (found.labels, found.predicted, found.counts)}
                pairs = np.concatenate([found.labels, found.predicted])
                fits = len(shapes) == 1 and bool(((pairs >= 0) & (pairs < found.num_classes)).all())
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits or bool((found.counts < 0).any()):
            raise CacheError(f"{where}: field 'confusion' is no confusion matrix; the file is damaged")
        return found

    @classmethod
    def _of_pairs(cls, document: Mapping[str, Any], where: str) -> "Confusion":
        lists = [field(document, name, list, where) for name in ("label", "predicted", "count")]
        if not all(type(value) is int for values in lists for value in values):
            raise ValueError
        return cls(field(document, "classes", int, where), *(np.array(values, np.int64) for values in lists))
