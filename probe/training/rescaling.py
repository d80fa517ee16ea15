"""Make logits of the outputs of least squares: rescale a closed-form head so that the held-out labels are likeliest.

Shapes: M members, R held-out samples, F features, C classes, O outputs.
"""

import torch
from torch import Tensor

from featcache.probing.heads.closed_form import ClosedFormHead, ClosedFormLinearHead
from featcache.probing.scoring.calibration import fit_sigmoids
from featcache.probing.scoring.held_out import likelihood
from featcache.probing.scoring.tasks import MultiLabel, SingleLabel, Task

# Factors that least-squares outputs are multiplied with to become logits.
FACTORS = tuple(10.0 ** (exponent / 8) for exponent in range(-4, 21))


def calibrate(
    head: ClosedFormHead, held_out: Tensor, targets: Tensor, task: Task, chosen: dict[str, float]
) -> Tensor:
    """Rescale the logits of a head so that the held-out labels are likeliest.

    Args:
        head: rescaled in place; left alone where the targets are quantities.
        held_out: logits of the held-out samples, ``[R, C]``.
        targets: of the held-out samples.
        task: the task of the targets.
        chosen: receives the factor of single labels.

    Returns:
        The rescaled logits, ``[R, C]``.
    """
    if isinstance(task, SingleLabel):
        factor = max(FACTORS, key=lambda factor: likelihood(held_out * factor, targets, task))
        chosen["factor"] = factor
        rescale(head, torch.tensor(factor))
        held_out = held_out * factor
    elif isinstance(task, MultiLabel):
        slope, offset = fit_sigmoids(held_out, targets)
        rescale(head, slope, offset)
        held_out = held_out * slope + offset
    return held_out


@torch.no_grad()
def rescale(head: ClosedFormHead, slope: Tensor, offset: Tensor | None = None) -> None:
    """Change what a linear head gives to ``outputs * slope + offset``, each a number or ``[O]``."""
    assert isinstance(head, ClosedFormLinearHead)
    weight, bias = head.classifier.weight, head.classifier.bias  # [M, O, F] and [M, O]
    assert bias is not None
    weight.mul_(slope.to(weight).unsqueeze(-1))
    bias.mul_(slope.to(bias))
    if offset is not None:
        bias.add_(offset.to(bias))
