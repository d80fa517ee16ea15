"""Log odds of what only ranks samples (Platt 1999, "Probabilistic outputs for support vector machines").

Shapes: R samples, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ITERATIONS = 100
LEAST_SLOPE = 1e-2
"""Of outputs in units of their deviation: a class that nothing was learnt of keeps its ranking."""


def fit_sigmoids(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a sigmoid to the outputs of every class, by maximum likelihood.

    As in the source, positive samples count as (n + 1) / (n + 2) and negative ones as 1 / (n + 2), n being their number: so a
    class that is told apart perfectly, or has no positive sample, gets a finite slope and offset. The slope is positive, so no ranking
    changes.

    Args:
        outputs: ``[R, C]``, finite, on the CPU.
        targets: ``[R, C]``, 0 and 1.

    Returns:
        Slope and offset, ``[C]``, float32: the log odds are ``outputs * slope + offset``.
    """
    positive = targets.double()
    mean, deviation = outputs.double().mean(0), outputs.double().std(0, correction=0)
    deviation = deviation.where(deviation > 0, 1.0)
    standard = (outputs.double() - mean) / deviation
    number = positive.sum(0)
    wanted = torch.where(positive > 0, (number + 1) / (number + 2), 1 / (len(positive) - number + 2))
    slope = torch.zeros_like(mean)  # its logarithm
    offset = wanted.mean(0).logit()
    parameters = [slope.requires_grad_(), offset.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=ITERATIONS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = standard * (slope.exp() + LEAST_SLOPE) + offset
        value = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(wanted)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        scale = (slope.exp() + LEAST_SLOPE) / deviation
        return scale.float(), (offset - scale * mean).float()
