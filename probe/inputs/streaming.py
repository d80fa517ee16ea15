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

from featcache.devices.transfer import Receipt, send
from featcache.probing.inputs.dataset import as_tensor
from featcache.probing.inputs.read_ahead import read_ahead
from featcache.probing.inputs.selection import Selection
from featcache.probing.inputs.tokens import check_finite
from featcache.probing.inputs.transforms import PLAIN, InputTransform, inverse, lengths
from featcache.store.quantization import INT8
from featcache.store.reading.copying import Method
from featcache.store.reading.split import SplitReader
from featcache.store.views import PLAIN_VIEW


class StreamedTokens:
    """A `TokenSource` that keeps nothing but a window of the split.

    The order of an epoch is that of `SplitReader.batches`: shuffled within windows that are made of short stretches from
    all over the split, within the budget. What is read ahead lies in the page cache, which the system takes back when it
    needs the memory. For a GPU, a thread reads the next mini-batch meanwhile, and stored values are sent as they are.

    Args:
        split: the split.
        selection: which tokens; the largest part sets the order, the others are gathered along.
        valid: ``[N]``, rows of the split that hold features; sample i of the source is row ``valid[i]``.
        memory: budget of what is read ahead, in bytes.
        device: where mini-batches are handed out.
        view: view of the images.
    """

    num_views = 1

    def __init__(
        self,
        split: SplitReader,
        selection: Selection,
        valid: npt.NDArray[np.int64],
        memory: int,
        device: torch.device | str = "cpu",
        view: str = PLAIN_VIEW,
    ) -> None:
        self._parts = selection.parts
        self._views = [part.of(split, view) for part in selection.parts]
        self._leader = max(range(len(self._parts)), key=lambda index: self._parts[index].num_tokens)
        self._valid = valid
        self._memory = memory
        self._device = torch.device(device)
        self._method: Method = "auto"
        # Heads compute in float32: rounding to float16 in between takes longer than decoding does. A GPU gets the smaller type.
        decoded = split.stored_dtype == INT8 and self._device.type == "cpu"
        self._dtype = "float32" if decoded else selection.value_type(split)
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
        tokens, norms = self._transformed(self._gather(chosen))
        check_finite(norms, chosen)
        return tokens

    def epochs(
        self, rows: Tensor, batch_size: int, num_epochs: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the mini-batches, window by window."""
        wanted = self._valid[rows.numpy()]
        part, view = self._parts[self._leader], self._views[self._leader]
        for epoch in range(num_epochs):
            batches = view.batches(
                *(batch_size, part.layers, part.tokens, (seed, epoch), self._memory),
                rows=wanted,
                dtype=self._dtype,
            )
            stored = self._stored(batches)
            last: _Check | None = None
            for chosen, part_of_all in stored if self._device.type == "cpu" else read_ahead(stored):
                tokens, norms = self._transformed(part_of_all)
                check = _Check(norms, chosen)
                if self._device.type == "cpu":
                    check.raise_error()
                elif last is not None:  # a GPU has long computed these, so nobody waits
                    last.raise_error()
                last = check
                yield torch.from_numpy(np.searchsorted(self._valid, chosen)), tokens
            if last is not None:
                last.raise_error()

    def with_transform(self, transform: InputTransform) -> Self:
        """Return the same tokens through another transform."""
        other = copy(self)
        other.input_transform = transform if transform.is_plain else transform.to(self._device)
        return other

    def subset(self, rows: Tensor) -> Self:
        """Return a source of some samples."""
        other = copy(self)
        other._valid = self._valid[rows.numpy()]
        return other

    def sequential(self) -> Self:
        """Return the same tokens, by plain reads: the pages of a map would count as memory of this process."""
        other = copy(self)
        other._method = "read"
        return other

    def _stored(
        self, batches: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]]
    ) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        """Yield rows and all their tokens ``[B, T, D]`` as stored."""
        for chosen, features in batches:
            led = _flat(as_tensor(features, self._dtype))
            yield chosen, led if len(self._parts) == 1 else self._gather(chosen, led)

    def _transformed(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens through the transform, and their lengths before it, on the device."""
        tokens = send(stored, self._device).float()
        norms = lengths(tokens, was_half=stored.dtype == torch.float16)
        if self.input_transform.is_plain:
            return tokens.mul_(inverse(norms).unsqueeze(-1)), norms
        return self.input_transform.apply_(tokens), norms

    def _gather(self, rows: npt.NDArray[np.int64], led: Tensor | None = None) -> Tensor:
        """All parts of `rows` side by side, ``[B, T, D]`` as stored; `led` is the leading part, if it is there already."""
        pieces = []
        for index, (part, view) in enumerate(zip(self._parts, self._views, strict=True)):
            if led is not None and index == self._leader:
                pieces.append(led)
            else:
                stored = view.gather(rows, part.layers, part.tokens, method=self._method, dtype=self._dtype)
                pieces.append(_flat(as_tensor(stored, self._dtype)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _flat(features: Tensor) -> Tensor:
    """``[B, L, K, D]`` to ``[B, L * K, D]``."""
    return features.flatten(1, 2)


class _Check:
    """Whether the lengths ``[B, T]`` of a mini-batch are finite, known as soon as the device has computed them."""

    def __init__(self, norms: Tensor, rows: npt.NDArray[np.int64]) -> None:
        self._norms = norms
        self._rows = rows
        self._finite = Receipt(norms.isfinite().all())

    def raise_error(self) -> None:
        """Raise the error of `check_finite` if a length is not finite."""
        if not self._finite.value():
            check_finite(self._norms, self._rows)
