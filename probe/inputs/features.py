"""Features of samples, block by block, for methods that need all samples but not all of them in memory at once.

Shapes: N samples, T tokens, D width, F = T * D features, B rows of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from featcache.probing.inputs.read_ahead import read_ahead
from featcache.probing.inputs.tokens import TokenSource

# Bytes of a block of features that are in memory anyway: large enough for products at full speed, small next to the features.
RESIDENT_BLOCK_BYTES = 2**26


class Features(Protocol):
    """Features ``[N, F]`` that can be read again and again, in the same blocks."""

    @property
    def num_samples(self) -> int:
        """N."""

    @property
    def num_features(self) -> int:
        """F."""

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the positions of rows and their features ``[B, F]``, float32 or float64, in order; do not change the features."""

    def select(self, rows: slice) -> "Features":
        """Return the features of some rows; nothing is copied."""


@dataclass(frozen=True)
class ResidentFeatures:
    """Features in memory."""

    matrix: Tensor
    """``[N, F]``, float32 or float64."""

    @property
    def num_samples(self) -> int:
        """N."""
        return self.matrix.shape[0]

    @property
    def num_features(self) -> int:
        """F."""
        return self.matrix.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the matrix."""
        return self.matrix.device

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield views of the matrix."""
        size = max(1, RESIDENT_BLOCK_BYTES // (self.matrix.element_size() * max(1, self.num_features)))
        for start in range(0, self.num_samples, size):
            part = self.matrix[start : start + size]
            yield slice(start, start + len(part)), part

    def select(self, rows: slice) -> "ResidentFeatures":
        """Return a view of some rows."""
        return ResidentFeatures(self.matrix[rows])


@dataclass(frozen=True)
class StreamedFeatures:
    """Features that are read and transformed anew in every pass; no more than two blocks of them exist at once."""

    tokens: TokenSource
    """The samples, with their input transform."""
    rows: Tensor
    """``[N]``, int64, on the CPU: the samples that are meant, in this order."""
    device: torch.device
    block_rows: int
    """B."""

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def num_features(self) -> int:
        """F."""
        return self.tokens.num_tokens * self.tokens.width

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of B rows, float32; for a GPU, a thread reads the next block meanwhile.

        On a CPU such a thread would take the cores from the products, which take much longer than reading.
        """
        source = self.tokens.sequential()

        def read() -> Iterator[tuple[slice, Tensor]]:
            for start in range(0, len(self.rows), self.block_rows):
                part = self.rows[start : start + self.block_rows]
                features = source.batch(part).flatten(1).to(self.device)
                yield slice(start, start + len(part)), features

        return read_ahead(read()) if self.device.type == "cuda" else read()

    def select(self, rows: slice) -> "StreamedFeatures":
        """Return the features of some rows, read in blocks of the same size."""
        return StreamedFeatures(self.tokens, self.rows[rows], self.device, self.block_rows)
