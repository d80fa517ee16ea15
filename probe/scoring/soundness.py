"""Check that outputs and parameters are finite; a training that diverged has no score.

Shapes: N samples, O outputs.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from featcache.probing.scoring.kinds import SINGLE_LABEL

DIVERGED = -float("inf")
"""Score of outputs that are not finite: it ranks below every other score, and is never written to a file."""


def is_sound(outputs: Tensor, target_type: str) -> bool:
    """Return whether outputs ``[N, O]`` can be scored.

    All must be finite. For single labels, some logits of a sample may be minus infinity, which stands for an impossible class.
    """
    if target_type != SINGLE_LABEL:
        return bool(outputs.isfinite().all())
    # NaN and infinity exceed all finite values, so the largest logit shows them.
    return not outputs.numel() or bool(outputs.amax(1).isfinite().all())


def are_numbers(tensors: Iterable[Tensor]) -> bool:
    """Return whether no value is NaN or infinite; minus infinity is allowed, as the bias of a class without samples."""
    return all(bool((tensor < torch.inf).all()) for tensor in tensors)
