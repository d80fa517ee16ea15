"""The space in which a head is solved: that of the features, or of the samples where these are fewer.

Weights beyond the span of the samples only cost penalty. So with fewer samples than features the problem in the
coordinates of that span is the same problem, and all it needs of the features is their Gram matrix.

Shapes: N samples, F features, M samples to fit, R dimensions, P penalties, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from featcache.probing.inputs.features import Features, ResidentFeatures
from featcache.probing.solver.certificate import Certificate
from featcache.probing.solver.design import Design
from featcache.probing.solver.products import gram_of, mean_of, symmetric_product

# Float64 copies of parts of the features hold at most this many values.
CHUNK_VALUES = 2**23
# A preconditioner is good enough from this many samples per feature.
ROWS_PER_FEATURE = 2
# The eigenvalues of larger matrices take longer than they save.
MAX_EIGEN = 8192


@dataclass(frozen=True)
class Coefficients:
    """Heads of P penalties in the terms of a space, whatever samples they were fitted to."""

    body: Tensor
    """Weights of features ``[P, C, F]``, or of samples ``[P, C, N]``: a head is the sum of samples times these."""
    bias: Tensor
    """``[P, C]``."""

    @classmethod
    def joined(cls, parts: Sequence["Coefficients"]) -> "Coefficients":
        """Return the heads of several parts, one after another."""
        return cls(torch.cat([part.body for part in parts]), torch.cat([part.bias for part in parts]))

    def of(self, index: int) -> "Coefficients":
        """The head of one penalty; P is 1."""
        return Coefficients(self.body[index : index + 1], self.bias[index : index + 1])


@dataclass(frozen=True)
class Path:
    """Heads for P penalties."""

    coefficients: Coefficients
    certificates: list[Certificate]


class Fitting(Protocol):
    """The first M samples of a space, to fit heads to."""

    @property
    def design(self) -> Design:
        """What the solver multiplies with, R dimensions."""

    def coefficients(self, params: Tensor) -> Coefficients:
        """Turn parameters ``[P, C, R + 1]`` of the design into coefficients."""

    def params(self, coefficients: Coefficients) -> Tensor:
        """Turn coefficients into the parameters ``[P, C, R + 1]`` that are nearest to them."""


class Space(Protocol):
    """N samples of F features."""

    def fitting(self, weights: Tensor) -> Fitting:
        """Prepare the fit to the first M samples; `weights` ``[M]``, float64, positive, sum to 1."""

    def logits(self, coefficients: Coefficients, start: int) -> Tensor:
        """Logits ``[P, C, N - start]`` of the samples from `start` on."""

    def head(self, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        """Weights ``[P, C, F]`` and biases ``[P, C]`` on the features."""


def make_space(features: Tensor) -> Space:
    """Choose the space for `features` ``[N, F]``, float32 or float64, which it keeps a reference to."""
    if prefers_samples(*features.shape):
        return GramSpace(ResidentFeatures(features))
    return FeatureSpace(features)


def prefers_samples(num_samples: int, num_features: int) -> bool:
    """Return whether a head is solved in the space of the samples."""
    return num_samples <= min(num_features, MAX_EIGEN)


class FeatureSpace:
    """Heads are solved in the features as they are; the eigenbasis of their covariance preconditions."""

    def __init__(self, features: Tensor) -> None:
        """Take `features` ``[N, F]``; nothing is copied."""
        self.features = features

    def fitting(self, weights: Tensor) -> "FeatureFitting":
        """Prepare the fit to the first M samples."""
        return FeatureFitting(_feature_design(self.features[: len(weights)], weights))

    def logits(self, coefficients: Coefficients, start: int) -> Tensor:
        """Logits ``[P, C, N - start]``."""
        return coefficients.body.to(self.features.dtype) @ self.features[
            start:
        ].T + coefficients.bias.unsqueeze(2)

    def head(self, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        """Weights ``[P, C, F]`` and biases ``[P, C]``."""
        return coefficients.body, coefficients.bias


@dataclass(frozen=True)
class FeatureFitting:
    """The first samples of a feature space."""

    design: Design

    def coefficients(self, params: Tensor) -> Coefficients:
        """Parameters are weights; the bias is that of centred features."""
        body = params[..., :-1].double()
        return Coefficients(body, params[..., -1].double() - body @ self.design.mean)

    def params(self, coefficients: Coefficients) -> Tensor:
        """Return them."""
        bias = coefficients.bias + coefficients.body @ self.design.mean
        return torch.cat([coefficients.body, bias.unsqueeze(2)], dim=2)


def _feature_design(features: Tensor, weights: Tensor) -> Design:
    """The covariance is that of some of the samples, in the type of the features: it only preconditions."""
    num_samples, num_features = features.shape
    mean = torch.zeros(num_features, dtype=torch.float64, device=features.device)
    for start, rows in _row_chunks(features):
        mean += weights[start : start + len(rows)] @ rows
    every = max(1, num_samples // (ROWS_PER_FEATURE * num_features))
    chosen, chosen_weights = features[::every], weights[::every]
    scale = (chosen_weights / chosen_weights.sum()).sqrt().to(features.dtype)
    centred = (chosen - mean.to(features.dtype)).mul_(scale[:, None])
    if num_features > MAX_EIGEN:
        return Design(features, mean, centred.square().sum(0), None)
    variances, basis = torch.linalg.eigh(symmetric_product(centred.T))
    return Design(features, mean, variances.clamp(min=0.0), basis)


class GramSpace:
    """Heads are solved in the span of the samples."""

    def __init__(self, features: Features) -> None:
        """Compute the Gram matrix of `features` ``[N, F]`` in float64."""
        self._features = features
        # Features that are nearly constant would drown in their means.
        self._shift = mean_of(features)
        self._gram = gram_of(features, lambda rows, block: block.double() - self._shift)

    def fitting(self, weights: Tensor) -> "GramFitting":
        """Prepare the fit to the first M samples."""
        return GramFitting(self._gram, weights)

    def logits(self, coefficients: Coefficients, start: int) -> Tensor:
        """Logits ``[P, C, N - start]``."""
        return coefficients.body @ self._gram[:, start:] + coefficients.bias.unsqueeze(2)

    def head(self, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        """Weights ``[P, C, F]`` and biases ``[P, C]``."""
        flat = coefficients.body.flatten(0, 1)
        weights = flat.new_zeros(len(flat), self._features.num_features)
        for rows, block in self._features.blocks():
            weights += flat[:, rows] @ (block.double() - self._shift)
        bias = coefficients.bias - (weights @ self._shift).view(coefficients.bias.shape)
        return weights.view(*coefficients.bias.shape, -1), bias


class GramFitting:
    """The first samples of a Gram space, in coordinates in which their covariance is diagonal.

    With centred features X and weights w, let ``diag(w)^1/2 X X^T diag(w)^1/2 = U S^2 U^T``. The coordinates are
    ``Z = diag(w)^-1/2 U S``: ``Z Z^T = X X^T``, so they are X in another orthonormal basis, and ``Z^T diag(w) Z = S^2``.
    """

    def __init__(self, gram: Tensor, weights: Tensor) -> None:
        """Prepare the fit to the first M samples of `gram` ``[N, N]``."""
        self._gram = gram
        self._weights = weights
        count = len(weights)
        part = gram[:count, :count]
        self._mean = gram[:, :count] @ weights  # [N], products with the mean
        mean = self._mean[:count]
        root = weights.sqrt()
        centred = (part - mean - mean[:, None] + weights @ mean) * root * root[:, None]
        squares, vectors = torch.linalg.eigh(centred)
        # What rounding has left of directions that do not exist is no direction.
        kept = squares > squares[-1].clamp(min=0.0) * count * torch.finfo(squares.dtype).eps
        squares, vectors = squares[kept], vectors[:, kept]
        self._lift = vectors * root[:, None] / squares.sqrt()  # [M, R]
        coordinates = vectors / root[:, None] * squares.sqrt()
        self.design = Design(coordinates, torch.zeros_like(squares), squares, None)

    def coefficients(self, params: Tensor) -> Coefficients:
        """Turn parameters into weights of samples."""
        lifted = params[..., :-1].double() @ self._lift.T
        # The features were centred with the weighted mean.
        lifted = lifted - lifted.sum(2, keepdim=True) * self._weights
        body = torch.nn.functional.pad(lifted, (0, len(self._gram) - lifted.shape[2]))
        return Coefficients(body, params[..., -1].double() - body @ self._mean)

    def params(self, coefficients: Coefficients) -> Tensor:
        """Project heads onto the span of the samples."""
        mean = coefficients.body @ self._mean
        logits = coefficients.body @ self._gram[:, : len(self._weights)]
        body = (logits - mean.unsqueeze(2)) @ self._lift
        return torch.cat([body, (coefficients.bias + mean).unsqueeze(2)], dim=2)


def _row_chunks(features: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Some rows at a time, in float64."""
    size = max(1, CHUNK_VALUES // features.shape[1])
    for start in range(0, len(features), size):
        yield start, features[start : start + size].double()
