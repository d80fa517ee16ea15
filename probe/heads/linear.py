"""The linear probe: the baseline of every comparison."""

from collections.abc import Sequence

import torch
from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.probing.heads.parts import Linear


class LinearHead(Head):
    """Concatenates the T tokens and maps them to C classes, as in arXiv 2601.09322."""

    def __init__(
        self, num_tokens: int, width: int, num_classes: int, dropouts: Sequence[float] = (0.0,)
    ) -> None:
        """Build M heads for inputs ``[B, num_tokens, width]``, with PyTorch's default initialization."""
        super().__init__(num_tokens, width, num_classes, dropouts)
        self.classifier = Linear(self.num_members, num_tokens * width, num_classes)

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Tensor:
        """Concatenate the tokens, in the type of matrix products: ``[B, T * D]``."""
        device, x = x.device.type, x.flatten(1)
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x

    def classify(self, inputs: Tensor) -> Tensor:
        """Map concatenated tokens to logits ``[M, B, C]``."""
        logits: Tensor = self.classifier(inputs)
        return logits
