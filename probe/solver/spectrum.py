"""Decomposition of weighted, centered features in the smaller of two spaces: that of the features, or that of the samples.

Let Z be the centered features, rows times the root of their weight. Closed-form heads are products ``L Z g(Z^T Z)`` with L a row for
every output and g a function of eigenvalues. With fewer samples than features this equals ``L g(Z Z^T) Z``, which needs of the features only
the products of all pairs of samples and one more pass.

All of it is float64: weak shrinkage divides by a hundred-thousandth of the mean variance, for which sums in float32 are too coarse.

Shapes: N samples, F features, B rows of a block, O outputs, M members, R = min(N, F) directions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from featcache.probing.inputs.features import Features
from featcache.probing.solver.products import Centered, covariance_of, gram_of

LeftRows = Callable[[slice], Tensor]
"""Columns of L for the samples of a block, as rows ``[B, O]``, float64."""


class Spectrum(Protocol):
    """Decomposition of Z."""

    squares: Tensor
    """Eigenvalues ``[R]`` of ``Z^T Z``, ascending, not negative."""
    vectors: Tensor
    """Eigenvectors, ``[R, R]``, in the space that was decomposed."""

    def of_samples(self, left: LeftRows, block_rows: int) -> Tensor:
        """Prepare L from its part for some samples, of which `block_rows` are asked for at a time."""

    def of_features(self, rows: Tensor) -> Tensor:
        """Prepare ``L = rows Z^T`` for rows ``[O, F]``."""

    def apply(self, prepared: Tensor, factors: Tensor) -> Iterator[Tensor]:
        """Yield ``L Z g(Z^T Z)``, ``[O, F]`` float64, for every row of `factors` ``[M, R]``, the values of g."""


def decompose(features: Features, centered: Centered) -> Spectrum:
    """Decompose `features`; `centered` makes the rows of Z of a block.

    The trace of ``Z^T Z`` is the sum of the eigenvalues.
    """
    if features.num_samples <= features.num_features:
        squares, vectors = torch.linalg.eigh(gram_of(features, centered))
        return SampleSpectrum(features, centered, squares.clamp(min=0.0), vectors)
    squares, vectors = torch.linalg.eigh(covariance_of(features, centered))
    return FeatureSpectrum(features, centered, squares.clamp(min=0.0), vectors)


@dataclass
class FeatureSpectrum:
    """Eigenvectors in the space of the features."""

    features: Features
    centered: Centered
    squares: Tensor
    vectors: Tensor
    """``[F, F]``."""

    def of_samples(self, left: LeftRows, block_rows: int) -> Tensor:
        """Return ``L Z`` along the eigenvectors, ``[O, F]``, in one pass."""
        total: Tensor | None = None
        for rows, block in self.features.blocks():
            centered = self.centered(rows, block)
            for start in range(0, len(centered), block_rows):
                part = centered[start : start + block_rows]
                first = rows.start + start
                product = left(slice(first, first + len(part))).T @ part
                total = product if total is None else total.add_(product)
        assert total is not None
        return total @ self.vectors

    def of_features(self, rows: Tensor) -> Tensor:
        """Return ``rows Z^T Z`` along the eigenvectors, ``[O, F]``."""
        return (rows @ self.vectors) * self.squares

    def apply(self, prepared: Tensor, factors: Tensor) -> Iterator[Tensor]:
        """Turn the products back."""
        for row in factors:
            yield (prepared * row) @ self.vectors.T


@dataclass
class SampleSpectrum:
    """Eigenvectors in the space of the samples."""

    features: Features
    centered: Centered
    squares: Tensor
    vectors: Tensor
    """``[N, N]``."""

    def of_samples(self, left: LeftRows, block_rows: int) -> Tensor:
        """Return L along the eigenvectors, ``[O, N]``."""
        total: Tensor | None = None
        for start in range(0, self.features.num_samples, block_rows):
            stop = min(start + block_rows, self.features.num_samples)
            product = left(slice(start, stop)).T @ self.vectors[start:stop]
            total = product if total is None else total.add_(product)
        assert total is not None
        return total

    def of_features(self, rows: Tensor) -> Tensor:
        """Return ``rows Z^T`` along the eigenvectors, ``[O, N]``, in one pass."""
        products = rows.new_empty(len(rows), self.features.num_samples)
        for part, block in self.features.blocks():
            products[:, part] = rows @ self.centered(part, block).T
        return products @ self.vectors

    def apply(self, prepared: Tensor, factors: Tensor) -> Iterator[Tensor]:
        """Turn the products back and multiply with Z, in one pass."""
        coefficients = (prepared * factors[:, None]) @ self.vectors.T  # [M, O, N]
        flat = coefficients.flatten(0, 1)
        total = flat.new_zeros(len(flat), self.features.num_features)
        for rows, block in self.features.blocks():
            total += flat[:, rows] @ self.centered(rows, block)
        yield from total.view(*coefficients.shape[:2], -1)
