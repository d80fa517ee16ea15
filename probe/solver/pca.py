"""Principal components of features that are read block by block.

Source: principal component analysis (Pearson 1901; Hotelling 1933). Computed from the covariance in float64, or with fewer samples than features
from the products of all pairs of samples; either way the features are read a few times and never kept.

Shapes: N samples, F features, R components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.probing.inputs.features import Features
from featcache.probing.solver.products import mean_of
from featcache.probing.solver.spectrum import SampleSpectrum, decompose
from featcache.store.errors import RequestError

# Variance below this fraction of the largest is rounding.
LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class PrincipalComponents:
    """The directions in which features vary most."""

    mean: Tensor
    """``[F]``, float64."""
    basis: Tensor
    """Orthonormal columns ``[F, R]``, float64, the direction of largest variance first."""
    variances: Tensor
    """``[R]``, float64: variance along each, with the number of samples as divisor."""
    total_variance: float
    """Sum of the variances of all features."""


def principal_components(
    features: Features, *, count: int | None = None, share: float | None = None
) -> PrincipalComponents:
    """Compute the leading principal components.

    Args:
        features: N samples.
        count: number of components, at most min(N - 1, F); fewer are returned where the features vary in fewer directions.
        share: instead of a number, the least share of the total variance that the components have together.

    Raises:
        RequestError: not exactly one of `count` and `share`, one that makes no sense, or features that do not vary.
    """
    most = min(features.num_samples - 1, features.num_features)
    if (count is None) == (share is None):
        raise RequestError("give either a number of principal components or a share of the variance")
    if count is not None and not 1 <= count <= most:
        raise RequestError(
            f"the number of principal components must be from 1 to {most} for {features.num_samples:,} samples of "
            f"{features.num_features:,} features, got {count}"
        )
    if share is not None and not 0 < share <= 1:
        raise RequestError(f"the share of variance must be above 0 and at most 1, got {share}")
    mean = mean_of(features)
    root = features.num_samples**-0.5
    spectrum = decompose(features, lambda rows, block: (block.double() - mean).mul_(root))
    squares = spectrum.squares.flip(0)
    total = float(squares.sum())
    kept = int((squares > LEAST_VARIANCE * squares[0]).sum())
    if total <= 0 or not kept:
        raise RequestError("the features are the same for all samples, so they have no principal components")
    if count is None:
        assert share is not None
        reached = squares.cumsum(0) >= share * total * (1 - 1e-12)
        count = int(reached.nonzero()[0]) + 1
    number = min(count, kept, most)
    leading = spectrum.vectors[:, -number:].flip(1)
    variances = squares[:number]
    if isinstance(spectrum, SampleSpectrum):
        leading = _in_features(spectrum, leading / variances.sqrt())
    return PrincipalComponents(mean, leading, variances, total)


def _in_features(spectrum: SampleSpectrum, weights: Tensor) -> Tensor:
    """Return the sums ``[F, R]`` of samples with `weights` ``[N, R]``, made orthonormal."""
    total = weights.new_zeros(spectrum.features.num_features, weights.shape[1])
    for rows, block in spectrum.features.blocks():
        total += spectrum.centered(rows, block).T @ weights[rows]
    # Small directions come out of the products of pairs less than orthogonal.
    basis, triangle = torch.linalg.qr(total)
    signed: Tensor = basis * triangle.diagonal().sign()
    return signed
