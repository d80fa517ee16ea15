"""Rank the classes of a row of logits, with one rule for exact ties wherever predictions are counted.

Among classes with equal logits, the lower index comes first, as in `Tensor.argmax`.

Shapes: N samples, C classes.
"""

import torch
from torch import Tensor

# Logits in a block that is compared with the logit of the label.
BLOCK_VALUES = 2**24


def among_first(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return whether the label of each sample is among its k first classes, ``[N]``, bool.

    A class that shares the lowest logit with others got no vote of a neighbor, or had no training samples. It counts only if it is
    the prediction itself.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]``, int64; a class beyond C was unknown in training and never counts.
        k: number of classes, at least 1.
    """
    right = logits.argmax(1) == labels
    if k == 1:
        return right
    size = max(1, BLOCK_VALUES // logits.shape[1])
    further = [
        _among(*part, k) for part in zip(torch.split(logits, size), torch.split(labels, size), strict=True)
    ]
    return right | torch.cat(further)


def _among(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    known = labels < logits.shape[1]
    place = labels.clamp(max=logits.shape[1] - 1).unsqueeze(1)
    own = logits.gather(1, place)
    before = torch.arange(logits.shape[1], device=logits.device) < place
    rank = (logits > own).sum(1) + ((logits == own) & before).sum(1)
    lowest = (own == logits.amin(1, keepdim=True)).squeeze(1)
    tied = (logits == own).sum(1) > 1
    return known & (rank < k) & ~(lowest & tied)
