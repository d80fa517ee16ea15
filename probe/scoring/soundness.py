"""Whether outputs and parameters are numbers: those of a training that diverged are not, and have no score.

Shapes: N samples, O outputs.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from featcache.probe.scoring.kinds import SINGLE_LABEL

DIVERGED = -float("inf")
"""The score of outputs that are not numbers: it ranks below every other, and is never written as a number."""


def is_sound(outputs: Tensor, target_type: str) -> bool:
    """Whether outputs ``[N, O]`` can be scored.

    All must be finite. Of single labels, minus infinity stands for a class that cannot be, so some logits of a sample may be that.
    """
    if target_type != SINGLE_LABEL:
        return bool(outputs.isfinite().all())
    # NaN and infinity exceed everything finite, so the largest logit shows them.
    return not outputs.numel() or bool(outputs.amax(1).isfinite().all())


def are_numbers(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite; minus infinity is the bias of a class without samples."""
    return all(bool((tensor < torch.inf).all()) for tensor in tensors)
