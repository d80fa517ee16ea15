"""Tokens of a split that is larger than memory: mini-batches from the memory map, shuffled block by block.

Shapes: N samples, T tokens, D width, B batch, R rows.
"""

from collections.abc import Iterator
from copy import copy
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probing.inputs.dataset import as_tensor
from featcache.probing.inputs.selection import Selection
from featcache.probing.inputs.tokens import check_finite
from featcache.probing.inputs.transforms import PLAIN, InputTransform, inverse, lengths
from featcache.store.reading.split import SplitReader


class StreamedTokens:
    """A `TokenSource` that keeps nothing but a window of the split.

    The order of an epoch is that of `SplitReader.batches`: shuffled within windows that are made of short stretches from
    all over the split, within the budget. What is read ahead lies in the page cache, which the system takes back when it
    needs the memory.

    Args:
        split: the split.
        selection: which tokens; the largest part sets the order, the others are gathered along.
        valid: ``[N]``, rows of the split that hold features; sample i of the source is row ``valid[i]``.
        memory: budget of what is read ahead, in bytes.
    """

    def __init__(
        self, split: SplitReader, selection: Selection, valid: npt.NDArray[np.int64], memory: int
    ) -> None:
        self._parts = selection.parts
        self._views = [part.of(split) for part in selection.parts]
        self._leader = max(range(len(self._parts)), key=lambda index: self._parts[index].num_tokens)
        self._valid = valid
        self._memory = memory
        self._dtype = split.dtype
        self.input_transform = PLAIN
        self.num_tokens = selection.num_tokens
        self.width = self._gather(valid[:1]).shape[2]

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self._valid)

    def batch(self, rows: Tensor) -> Tensor:
        """Return the tokens of `rows`, ``[B, T, D]`` float32, through the transform."""
        chosen = self._valid[rows.numpy()]
        return self._transformed(self._gather(chosen), chosen)

    def epochs(
        self, rows: Tensor, batch_size: int, num_epochs: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the mini-batches, window by window."""
        wanted = self._valid[rows.numpy()]
        part, view = self._parts[self._leader], self._views[self._leader]
        for epoch in range(num_epochs):
            batches = view.batches(
                batch_size, part.layers, part.tokens, (seed, epoch), self._memory, rows=wanted
            )
            for chosen, features in batches:
                led = _flat(as_tensor(features, self._dtype))
                tokens = led if len(self._parts) == 1 else self._gather(chosen, led)
                yield (
                    torch.from_numpy(np.searchsorted(self._valid, chosen)),
                    self._transformed(tokens, chosen),
                )

    def with_transform(self, transform: InputTransform) -> Self:
        """Return the same tokens through another transform."""
        other = copy(self)
        other.input_transform = transform
        return other

    def subset(self, rows: Tensor) -> Self:
        """Return a source of some samples."""
        other = copy(self)
        other._valid = self._valid[rows.numpy()]
        return other

    def _transformed(self, tokens: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        tokens = tokens.float()
        norms = lengths(tokens)
        check_finite(norms, rows)
        if self.input_transform.is_plain:
            return tokens.mul_(inverse(norms).unsqueeze(-1))
        return self.input_transform.apply_(tokens)

    def _gather(self, rows: npt.NDArray[np.int64], led: Tensor | None = None) -> Tensor:
        """All parts of `rows` side by side, ``[B, T, D]`` as stored; `led` is the leading part, if it is there already."""
        pieces = []
        for index, (part, view) in enumerate(zip(self._parts, self._views, strict=True)):
            if led is not None and index == self._leader:
                pieces.append(led)
            else:
                pieces.append(_flat(as_tensor(view.gather(rows, part.layers, part.tokens), self._dtype)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _flat(features: Tensor) -> Tensor:
    """``[B, L, K, D]`` to ``[B, L * K, D]``."""
    return features.flatten(1, 2)
