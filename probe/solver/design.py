"""What the solver multiplies with: the centred features of the samples to fit, and a preconditioner.

Shapes: N samples, R dimensions, P penalties, C classes. Parameters are ``[P, C, R + 1]``; the last is the bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Rows that are turned into float64 at once.
ROW_CHUNK = 4096


@dataclass(frozen=True)
class Preconditioner:
    """Approximate inverse of the Hessian, from the covariance of the features."""

    variances: Tensor
    """``[R]``: variance of the features along the columns of `basis`, as exact as a preconditioner needs it."""
    basis: Tensor | None
    """Orthogonal ``[R, R]``; None where the features are uncorrelated already, or too many to decompose."""

    def apply(self, gradient: Tensor, curvature: Tensor, penalties: Tensor) -> Tensor:
        """Apply the inverse of the Hessian's approximation to `gradient` ``[P, C, R + 1]``.

        A Hessian whose weights p (1 - p) are independent of the features has a block per class: covariance times
        `curvature` ``[P, C]`` plus the penalty ``[P]``, which the eigenbasis makes diagonal.
        """
        dtype = gradient.dtype
        scale = curvature.clamp(min=1e-10).to(dtype).unsqueeze(2)
        body, bias = gradient[..., :-1], gradient[..., -1:]
        basis = None if self.basis is None else self.basis.to(dtype)
        if basis is not None:
            body = body @ basis
        body = body / (scale * self.variances.to(dtype) + penalties.to(dtype)[:, None, None])
        if basis is not None:
            body = body @ basis.T
        return torch.cat([body, bias / scale], dim=2)


@dataclass(frozen=True)
class Design:
    """Features of N samples; their weighted mean is taken off, so that weights and bias hardly interact.

    Centring changes nothing but the bias, which is not penalised.
    """

    matrix: Tensor
    """``[N, R]``, float32 or float64, not centred."""
    mean: Tensor
    """``[R]``, float64."""
    variances: Tensor
    """``[R]``: variance of the features along the columns of `basis`, as exact as a preconditioner needs it."""
    basis: Tensor | None
    """Orthogonal ``[R, R]``; None where the features are uncorrelated already."""
    dtype: torch.dtype = torch.float64
    """What is computed in."""

    def to(self, dtype: torch.dtype) -> "Design":
        """Compute in another type. A float32 matrix stays and is converted part by part."""
        matrix = self.matrix.to(dtype) if dtype == torch.float32 else self.matrix
        return replace(self, matrix=matrix, dtype=dtype)

    def logits(self, params: Tensor) -> Tensor:
        """Logits ``[P, C, N]`` of `params`."""
        flat = params.flatten(0, 1)
        offset = (flat[:, -1].double() - flat[:, :-1].double() @ self.mean).to(self.dtype)
        parts = [torch.addmm(offset[:, None], flat[:, :-1], rows.T) for _, rows in self._chunks()]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return logits.view(*params.shape[:2], -1)

    def adjoint(self, residual: Tensor) -> Tensor:
        """Gradient ``[P, C, R + 1]`` of the loss, from its residual ``[P, C, N]``."""
        flat = residual.flatten(0, 1)
        total = flat.sum(1, keepdim=True, dtype=torch.float64)
        body = (-total * self.mean).to(self.dtype)
        for start, rows in self._chunks():
            body.addmm_(flat[:, start : start + len(rows)], rows)
        return torch.cat([body, total.to(self.dtype)], dim=1).view(*residual.shape[:2], -1)

    @property
    def preconditioner(self) -> "Preconditioner":
        """The preconditioner of the features."""
        return Preconditioner(self.variances, self.basis)

    def _chunks(self) -> Iterator[tuple[int, Tensor]]:
        if self.matrix.dtype == self.dtype:
            yield 0, self.matrix
            return
        for start in range(0, len(self.matrix), ROW_CHUNK):
            yield start, self.matrix[start : start + ROW_CHUNK].to(self.dtype)
