"""The best bias for given weights, by Newton's method: what the bounds on suboptimality presuppose.

Shapes: N samples, R dimensions, P penalties, C classes.
"""

import torch
from torch import Tensor

from featcache.probing.solver.loss import Evaluation, WeightedLoss

MAX_STEPS = 30
TOLERANCE = 1e-12


def polish_bias(logits: Tensor, params: Tensor, loss: WeightedLoss) -> tuple[Tensor, Evaluation]:
    """Minimise the loss over the bias, the last of `params`.

    Args:
        logits: of `params`, ``[P, C, N]``, float64.
        params: ``[P, C, R + 1]``, float64.
        loss: targets and weights.

    Returns:
        The parameters with the best bias, and the loss there.
    """
    bias = torch.zeros_like(params[..., -1])
    evaluation = loss.evaluate(logits)
    for _ in range(MAX_STEPS):
        gradient = evaluation.residual.sum(2)  # [P, C]
        if float(gradient.abs().amax()) <= TOLERANCE:
            break
        step = -newton_step(_hessian(evaluation, loss), gradient)
        # Half as far until it helps: the loss is convex, but its curvature vanishes where samples are certain.
        decrease = (gradient * step).sum(1)
        factor = torch.ones_like(decrease)
        for _ in range(MAX_STEPS):
            moved = loss.evaluate(logits + (bias + factor[:, None] * step).unsqueeze(2))
            good = moved.loss <= evaluation.loss + 1e-4 * factor * decrease + 1e-15
            if bool(good.all()):
                break
            factor = torch.where(good, factor, factor / 2)
        else:
            break
        bias = bias + factor[:, None] * step
        evaluation = moved
    return torch.cat([params[..., :-1], (params[..., -1] + bias).unsqueeze(2)], dim=2), evaluation


def _hessian(evaluation: Evaluation, loss: WeightedLoss) -> Tensor:
    """Second derivative of the loss in the bias, ``[P, C, C]``."""
    weighted = evaluation.residual.clone()
    index = loss.targets.expand(len(weighted), 1, -1)
    weighted.scatter_add_(1, index, loss.weights.expand(index.shape))
    outer = (weighted / loss.weights) @ weighted.mT
    return torch.diag_embed(weighted.sum(2)) - outer


def newton_step(hessian: Tensor, gradient: Tensor) -> Tensor:
    """Return the inverse of `hessian` ``[P, C, C]`` times `gradient` ``[P, C]``; the constant over classes, which changes nothing, is left alone."""
    classes = hessian.shape[-1]
    scale = hessian.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)[:, None, None]
    ridge = 1e-12 * torch.eye(classes, dtype=hessian.dtype, device=hessian.device)
    constant = torch.full_like(ridge, 1 / classes)
    step: Tensor = torch.linalg.solve(hessian + scale * (constant + ridge), gradient.unsqueeze(2))
    return step.squeeze(2)
