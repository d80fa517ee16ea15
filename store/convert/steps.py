"""Rows in steps of bounded size, and a digest of them that does not depend on the steps."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from featcache.store.reading.chunks import Array

STEP_BYTES = 32 * 2**20


def row_steps(start: int, stop: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut the rows ``start`` up to ``stop`` into steps of at most `STEP_BYTES`, but of one row at least."""
    rows = max(1, STEP_BYTES // max(1, row_bytes))
    for first in range(start, stop, rows):
        yield first, min(first + rows, stop)


class ContentDigest:
    """SHA-256 over the content of one split, layer by layer: rows come in order, layers in any order."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = {layer: hashlib.sha256() for layer in layers}

    def update(self, layers: Sequence[str], features: Array) -> None:
        """Add the next rows ``[B, L, K, D]`` of some layers, in the stored type."""
        for index, layer in enumerate(layers):
            self._layers[layer].update(np.ascontiguousarray(features[:, index]).data.cast("B"))

    def hexdigest(self, tokens: Sequence[str], columns: dict[str, Array]) -> str:
        """Return the digest of everything, with the columns ``[N]`` or ``[N, ...]`` of the split."""
        total = hashlib.sha256(f"tokens {' '.join(tokens)}\n".encode())
        for layer, digest in self._layers.items():
            total.update(f"layer {layer} {digest.hexdigest()}\n".encode())
        for name, values in sorted(columns.items()):
            column = hashlib.sha256(np.ascontiguousarray(values).data.cast("B")).hexdigest()
            total.update(f"column {name} {values.dtype.str} {column}\n".encode())
        return total.hexdigest()
