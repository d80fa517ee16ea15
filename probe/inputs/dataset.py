"""torch datasets over a split of a cache, for training loops of one's own.

Both can be pickled and work in worker processes, forked or spawned: files are mapped in the process that reads.

Shapes: B batch, L layers, K token kinds, D width.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from featcache.devices.int8_kernel import torch_kernel
from featcache.store.layers import split_tokens
from featcache.store.reading.decoding import use_kernel
from featcache.store.reading.split import DEFAULT_MEMORY, Names, SplitReader

# int8 features come several times faster through torch than through numpy, which is all that the store may use.
use_kernel(torch_kernel)

Sample = tuple[Tensor, Tensor]
"""Features ``[L, K, D]`` (or ``[B, L, K, D]``) in the stored type, and the label (or ``[B]``), int64."""


class CachedSamples(Dataset[Sample]):
    """Map-style: sample by sample, or many at once where the loader asks for them (it does).

    Args:
        split: the split.
        layers: layer names in the order wanted, a layer set, or a list in one text; as for `SplitReader.load`.
        tokens: token kinds in the order wanted, or a list in one text such as ``cls+ap``.
        rows: which rows, integer ``[M]``; by default all that hold features.
    """

    def __init__(
        self,
        split: SplitReader,
        layers: Names,
        tokens: Names,
        rows: npt.ArrayLike | None = None,
    ) -> None:
        self.split = split
        self.layers = split.resolve_layers(layers)
        self.tokens = split_tokens(tokens) if isinstance(tokens, str) else tuple(tokens)
        self.rows = _rows(split, rows)
        self._labels = torch.from_numpy(split.labels())

    def __len__(self) -> int:
        """M."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Return several samples with one gather; torch's loader calls this with the indices of a batch."""
        rows = self.rows[np.asarray(indices, np.int64)]
        features = as_tensor(self.split.gather(rows, self.layers, self.tokens), self.split.dtype)
        return list(zip(features, self._labels[rows], strict=True))


class ShuffledBatches(IterableDataset[Sample]):
    """Whole batches in an order that suits the disk; give it to a `DataLoader` with ``batch_size=None``.

    Workers share an epoch, each with its part of the budget, so the order depends on their number.

    Args:
        split: the split.
        batch_size: B.
        layers: layer names in the order wanted, a layer set, or a list in one text; as for `SplitReader.load`.
        tokens: token kinds in the order wanted, or a list in one text such as ``cls+ap``.
        seed: fixes the order of all epochs.
        memory: budget in bytes, of all workers together.
        rows: which rows, integer ``[M]``; by default all that hold features.
    """

    def __init__(
        self,
        split: SplitReader,
        batch_size: int,
        layers: Names,
        tokens: Names,
        seed: int = 0,
        memory: int = DEFAULT_MEMORY,
        rows: npt.ArrayLike | None = None,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.layers = split.resolve_layers(layers)
        self.tokens = split_tokens(tokens) if isinstance(tokens, str) else tuple(tokens)
        self.seed = seed
        self.memory = memory
        self.rows = _rows(split, rows)
        self._labels = torch.from_numpy(split.labels())
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, before the loader is iterated; persistent workers do not hear of it."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        """Yield the batches of one epoch."""
        worker = get_worker_info()
        part = (worker.id, worker.num_workers) if worker else (0, 1)
        batches = self.split.batches(
            self.batch_size,
            self.layers,
            self.tokens,
            (self.seed, self._epoch),
            self.memory // part[1],
            rows=self.rows,
            part=part,
        )
        for rows, features in batches:
            yield as_tensor(features, self.split.dtype), self._labels[rows]


def as_tensor(features: npt.NDArray[Any], dtype: str) -> Tensor:
    """View stored features of value type `dtype` as a tensor, bfloat16 included; nothing is copied."""
    if dtype == "bfloat16":
        return torch.from_numpy(features.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(features)


def _rows(split: SplitReader, rows: npt.ArrayLike | None) -> npt.NDArray[np.int64]:
    return np.flatnonzero(split.valid()) if rows is None else np.asarray(rows, np.int64)
