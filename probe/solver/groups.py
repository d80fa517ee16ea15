"""Features in groups, each in an orthonormal basis of its own in which its covariance is diagonal.

A rotation within a group leaves the norm of its weights as it is, so the group lasso may be solved in that basis, where
a diagonal metric follows the features closely. Where there are fewer samples than features in a group, the basis is that
of the samples' span.

Shapes: N samples, F features, G groups, R dimensions of all groups, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.probing.solver.design import Design

# Larger designs are kept in float32.
FLOAT64_VALUES = 2**26


@dataclass(frozen=True)
class _Group:
    """How weights in the basis of a group become weights of its features, and what is taken off these."""

    columns: Tensor
    basis: Tensor
    """``[F_g, R_g]``, orthonormal columns, float64."""
    mean: Tensor
    """``[F_g]``."""


@dataclass(frozen=True)
class GroupedDesign:
    """The features of all groups side by side, centred."""

    design: Design
    group_of: Tensor
    """``[R]``: the group of each dimension."""
    sizes: Tensor
    """``[G]``, float64: features of each group."""
    groups: tuple[_Group, ...]

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.groups)

    def norms(self, body: Tensor) -> Tensor:
        """Frobenius norms ``[G]``, float64, of the groups of `body` ``[C, R]``."""
        squares = body.double().square().sum(0)
        return squares.new_zeros(self.num_groups).index_add_(0, self.group_of, squares).sqrt()

    def part(self, chosen: Tensor) -> "tuple[Design, Tensor]":
        """The design of some groups (``[G]``, bool), and the dimensions that it holds."""
        rows = chosen[self.group_of].nonzero().squeeze(1)
        whole = self.design
        matrix = whole.matrix if len(rows) == len(self.group_of) else whole.matrix.index_select(1, rows)
        return Design(matrix, whole.mean[rows], whole.variances[rows], None), rows

    def head(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[C, F]`` and bias ``[C]``, float64, of parameters ``[C, R + 1]``."""
        body, bias = params[:, :-1].double(), params[:, -1].double()
        weights = body.new_zeros(len(body), int(self.sizes.sum()))
        for index, group in enumerate(self.groups):
            part = body[:, self.group_of == index] @ group.basis.T
            weights[:, group.columns] = part
            bias = bias - part @ group.mean
        return weights, bias

    def params(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Parameters ``[C, R + 1]`` of the head that is nearest to the one given (the inverse of `head`)."""
        parts = [weight[:, group.columns] for group in self.groups]
        moved = bias + torch.stack([part @ g.mean for part, g in zip(parts, self.groups, strict=True)]).sum(0)
        rotated = [part @ g.basis for part, g in zip(parts, self.groups, strict=True)]
        return torch.cat([*rotated, moved.unsqueeze(1)], dim=1)


def make_groups(features: Tensor, weights: Tensor, groups: Sequence[Tensor]) -> GroupedDesign:
    """Prepare `features` ``[N, F]`` with weights ``[N]`` (float64, sum 1); `groups` hold the columns of each."""
    found, matrices, variances = [], [], []
    values = len(features) * sum(min(len(features), len(columns)) for columns in groups)
    kept_type = torch.float64 if values <= FLOAT64_VALUES else torch.float32
    for columns in groups:
        part = features[:, columns].double()
        mean = weights @ part
        part -= mean
        squares, basis = principal_directions(part, weights)
        found.append(_Group(columns, basis, mean))
        matrices.append((part @ basis).to(kept_type))
        variances.append(squares)
    matrix, device = torch.cat(matrices, dim=1), features.device
    counts = torch.tensor([len(squares) for squares in variances], device=device)
    group_of = torch.repeat_interleave(torch.arange(len(groups), device=device), counts)
    sizes = torch.tensor([len(columns) for columns in groups], dtype=torch.float64, device=device)
    design = Design(matrix, matrix.new_zeros(matrix.shape[1]).double(), torch.cat(variances), None)
    return GroupedDesign(design, group_of, sizes, tuple(found))


def principal_directions(centred: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Variances ``[R]`` and orthonormal basis ``[F, R]`` of centred features ``[N, F]``."""
    num_samples, num_features = centred.shape
    scaled = centred * weights.sqrt()[:, None]
    wide = num_samples <= num_features
    squares, vectors = torch.linalg.eigh(scaled @ scaled.T if wide else scaled.T @ scaled)
    eps = torch.finfo(squares.dtype).eps * min(num_samples, num_features)
    kept = squares > squares[-1].clamp(min=0.0) * eps
    squares, vectors = squares[kept], vectors[:, kept]
    if wide:
        vectors = scaled.T @ vectors / squares.sqrt()
        # Small directions come out of the Gram matrix less than orthogonal.
        vectors = torch.linalg.qr(vectors).Q
    return squares, vectors
