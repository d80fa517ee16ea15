"""What the solver multiplies with: the centred features of the samples to fit, and a preconditioner.

Shapes: N samples, R dimensions, P penalties, C classes. Parameters are ``[R + 1, P, C]``; the last row is the bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Rows that are turned into float64 at once.
ROW_CHUNK = 4096


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
        """Logits ``[N, P, C]`` of `params`."""
        flat = params.flatten(1)
        offset = (params[-1].double() - torch.einsum("r,rpc->pc", self.mean, params[:-1].double())).flatten()
        offset = offset.to(self.dtype)
        parts = [torch.addmm(offset, rows, flat[:-1]) for _, rows in self._chunks()]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        return logits.view(-1, *params.shape[1:])

    def adjoint(self, residual: Tensor) -> Tensor:
        """Gradient ``[R + 1, P, C]`` of the loss, from its residual ``[N, P, C]``."""
        flat = residual.flatten(1)
        total = flat.sum(0, dtype=torch.float64)
        gradient = flat.new_zeros(len(self.mean) + 1, flat.shape[1])
        for start, rows in self._chunks():
            gradient[:-1].addmm_(rows.T, flat[start : start + len(rows)])
        gradient[:-1].sub_((self.mean[:, None] * total).to(self.dtype))
        gradient[-1] = total
        return gradient.view(-1, *residual.shape[1:])

    def precondition(self, gradient: Tensor, curvature: Tensor, penalties: Tensor) -> Tensor:
        """Apply the inverse of the Hessian's approximation to `gradient` ``[R + 1, P, C]``.

        A Hessian whose weights p (1 - p) are independent of the features has a block per class: covariance times
        `curvature` ``[P, C]`` plus the penalty ``[P]``, which the eigenbasis makes diagonal.
        """
        scale = curvature.clamp(min=1e-10).to(gradient.dtype)
        body, bias = gradient[:-1], gradient[-1:]
        if self.basis is not None:
            basis = self.basis.to(gradient.dtype)
            body = (basis.T @ body.flatten(1)).view(body.shape)
        variances = self.variances.to(gradient.dtype)[:, None, None]
        body = body / (variances * scale + penalties.to(gradient.dtype)[:, None])
        if self.basis is not None:
            body = (basis @ body.flatten(1)).view(body.shape)
        return torch.cat([body, bias / scale])

    def _chunks(self) -> Iterator[tuple[int, Tensor]]:
        if self.matrix.dtype == self.dtype:
            yield 0, self.matrix
            return
        for start in range(0, len(self.matrix), ROW_CHUNK):
            yield start, self.matrix[start : start + ROW_CHUNK].to(self.dtype)
