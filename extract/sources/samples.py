"""Samples by the million: ids as one piece of UTF-8, labels as one array. Worker processes share them untouched."""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.base import Labels, Rows, Sample


class Texts(Sequence[str]):
    """N strings in about their own size; a list of them takes several times that.

    Args:
        data: the UTF-8 of all of them, one after another.
        ends: int64 ``[N]``, where each ends in `data`.
    """

    def __init__(self, data: bytes, ends: Rows) -> None:
        self.data = data
        self._bounds = np.concatenate([np.zeros(1, np.int64), ends])

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Take some strings over."""
        parts = [text.encode() for text in texts]
        return cls(b"".join(parts), np.cumsum([len(part) for part in parts], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.data[self._bounds[index] : self._bounds[index + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._bounds[1:].tolist():
            yield self.data[start:end].decode()
            start = end

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of every string: ``[N]``."""
        return np.diff(self._bounds)


class Samples(Sequence[Sample]):
    """Some rows of a collection as samples.

    Args:
        ids: of the whole collection.
        labels: ``[N, ...]`` of the whole collection.
        rows: the rows that are meant, in order.
    """

    def __init__(self, ids: Texts, labels: Labels, rows: Rows) -> None:
        self._ids = ids
        self._labels = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(self._ids, self._labels, self.rows[index])
        row = int(self.rows[index])
        label = self._labels[row]
        return Sample(self._ids[row], label if label.ndim else int(label))

    @property
    def labels(self) -> Labels:
        """Labels of these samples, ``[M, ...]``."""
        return self._labels[self.rows]

    @property
    def max_id_bytes(self) -> int:
        """Bytes of the longest id."""
        return int(self._ids.lengths[self.rows].max(initial=1))


def max_id_bytes(samples: Sequence[Sample]) -> int:
    """Return the bytes of the longest id."""
    if isinstance(samples, Samples):
        return samples.max_id_bytes
    return max(len(sample.id.encode()) for sample in samples)


def labels_of(samples: Sequence[Sample]) -> Labels:
    """Return the labels of some samples, ``[M, ...]``."""
    return samples.labels if isinstance(samples, Samples) else np.array([sample.label for sample in samples])
