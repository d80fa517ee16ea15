"""Tokens as the heads take them: one vector per sample, layer and token kind, L2-normalised unless another transform is asked for.

Shapes: N samples, T tokens, D width, B batch.
"""

from collections.abc import Iterator
from copy import copy
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.devices.transfer import send
from featcache.probing.inputs.transforms import PLAIN, READ_ROWS, InputTransform, inverse, lengths
from featcache.store.errors import RequestError

# Samples whose norms are computed at once: bounds the float32 copy of a float16 array.
NORM_CHUNK = 1024
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class TokenSource(Protocol):
    """Anything that hands out tokens by row, through an input transform."""

    input_transform: InputTransform
    """By default, tokens are L2-normalised."""
    num_views: int
    """V, views of every sample: row ``v * N + n`` is view v of sample n, and `num_samples` counts rows."""

    @property
    def num_samples(self) -> int:
        """N."""

    @property
    def num_tokens(self) -> int:
        """T."""

    @property
    def width(self) -> int:
        """D."""

    def batch(self, rows: Tensor) -> Tensor:
        """Return the tokens of `rows` (``[B]``, int64, on the CPU), through the transform.

        Returns:
            ``[B, T, D]``, float32, a fresh tensor that the caller may change.
        """

    def epochs(
        self, rows: Tensor, batch_size: int, num_epochs: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows ``[B]`` and tokens ``[B, T, D]`` of all mini-batches, in a new order every epoch.

        Args:
            rows: ``[R]``, int64, on the CPU, ascending: each is met once an epoch.
            batch_size: B; the last batch of an epoch may be smaller.
            num_epochs: how many.
            seed: fixes the order, whatever the device.
        """

    def with_transform(self, transform: InputTransform) -> Self:
        """Return the same tokens through another transform; nothing is copied."""

    def subset(self, rows: Tensor) -> Self:
        """Return a source of the samples `rows` (``[R]``, int64, on the CPU) alone, numbered anew."""

    def sequential(self) -> Self:
        """Return the same tokens for reading all of them in order, batch by batch; nothing is copied."""


class InMemoryTokens:
    """All tokens of a split in the memory of one device.

    The array keeps its dtype: the norms are computed once and divided out batch by batch, so a float16 cache
    takes no more memory than on disk and nothing is rounded twice. A zero vector stays zero.
    """

    def __init__(
        self,
        array: npt.NDArray[Any] | Tensor,
        device: torch.device | str = "cpu",
        rows: npt.NDArray[np.int64] | None = None,
        num_views: int = 1,
    ) -> None:
        """Take over `array`, ``[N, T, D]``, float16, bfloat16 or float32, without a copy where possible.

        Args:
            array: the tokens.
            device: where they are kept.
            rows: ``[N]``, the rows of the split that the samples are, for errors; by default the first N.
            num_views: views of every sample, the rows of one view after those of another.

        Raises:
            RequestError: another shape or dtype, or a value that is not finite.
        """
        self.num_views = num_views
        self._tokens = _as_tensor(array).to(device)
        if self._tokens.ndim != 3 or self._tokens.dtype not in DTYPES:
            raise RequestError(
                f"tokens must be float16, bfloat16 or float32 of shape [N, T, D], not {self._tokens.dtype} of shape "
                f"{tuple(self._tokens.shape)}"
            )
        norms = _norms(self._tokens)
        check_finite(norms, rows)
        self._scale = inverse(norms)  # [N, T]
        self.input_transform = PLAIN

    @property
    def num_samples(self) -> int:
        """N."""
        return self._tokens.shape[0]

    @property
    def num_tokens(self) -> int:
        """T."""
        return self._tokens.shape[1]

    @property
    def width(self) -> int:
        """D."""
        return self._tokens.shape[2]

    def batch(self, rows: Tensor) -> Tensor:
        """Return the tokens of `rows`, ``[B, T, D]`` float32, through the transform."""
        rows = send(rows, self._tokens.device)
        # index_select copies, so multiplying in place leaves the stored tokens alone.
        tokens = self._tokens.index_select(0, rows).float()
        if self.input_transform.is_plain:  # the lengths are known
            return tokens.mul_(self._scale[rows].unsqueeze(-1))
        return self.input_transform.apply_(tokens)

    def epochs(
        self, rows: Tensor, batch_size: int, num_epochs: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the mini-batches; every order of the rows is as likely as any other."""
        order = torch.Generator().manual_seed(seed)
        for _ in range(num_epochs):
            permuted = rows[torch.randperm(len(rows), generator=order)]
            for chosen in torch.split(permuted, batch_size):
                yield chosen, self.batch(chosen)

    def with_transform(self, transform: InputTransform) -> Self:
        """Return the same tokens through another transform."""
        if transform is self.input_transform or (transform.is_plain and self.input_transform.is_plain):
            return self
        other = copy(self)
        other.input_transform = transform.to(self._tokens.device)
        return other

    def subset(self, rows: Tensor) -> Self:
        """Return a source of some samples, which are copied."""
        other, rows = copy(self), rows.to(self._tokens.device)
        other._tokens, other._scale = self._tokens[rows], self._scale[rows]
        return other

    def sequential(self) -> Self:
        """Return the source: any order takes the same time and memory."""
        return self


def read_features(tokens: TokenSource, rows: Tensor, device: torch.device | str) -> Tensor:
    """Concatenate the tokens of `rows` ``[M]``: ``[M, T * D]``, float32, on `device`."""
    features = torch.empty(len(rows), tokens.num_tokens * tokens.width, device=device)
    for start in range(0, len(rows), READ_ROWS):
        part = rows[start : start + READ_ROWS]
        features[start : start + len(part)] = tokens.batch(part).flatten(1)
    return features


def _as_tensor(array: npt.NDArray[Any] | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array
    # torch supports neither negative strides nor foreign byte order, and warns about read-only arrays (memory maps), which it cannot protect.
    foreign = not array.dtype.isnative or any(stride < 0 for stride in array.strides)
    if foreign or not array.flags.writeable:
        array = np.array(array, array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array)


def _norms(tokens: Tensor) -> Tensor:
    norms = tokens.new_empty(tokens.shape[:2], dtype=torch.float32)
    # One buffer for all chunks: between results that stay, the memory of chunks that go is not used again.
    buffer = torch.empty_like(tokens[:NORM_CHUNK], dtype=torch.float32)
    for start in range(0, len(tokens), NORM_CHUNK):
        chunk = tokens[start : start + NORM_CHUNK]
        norms[start : start + len(chunk)] = lengths(buffer[: len(chunk)].copy_(chunk))
    return norms


def check_finite(norms: Tensor, rows: npt.NDArray[np.int64] | None = None) -> None:
    """Refuse norms ``[N, T]`` that are not finite: one bad value would turn every parameter into NaN, without a word.

    Args:
        norms: of the tokens of N samples.
        rows: ``[N]``, the rows of the split that the samples are; by default the first N.

    Raises:
        RequestError: naming the first bad sample.
    """
    bad = (~norms.isfinite()).any(dim=1).nonzero().squeeze(1)
    if len(bad):
        first = int(bad[0]) if rows is None else int(rows[int(bad[0])])
        samples = "1 sample holds" if len(bad) == 1 else f"{len(bad)} samples hold"
        raise RequestError(
            f"{samples} values that are not finite, the first is row {first}; "
            "leave them out (skipped samples are marked invalid in a cache)"
        )
