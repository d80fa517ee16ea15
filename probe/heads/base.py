"""What all heads have in common."""

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """A small classifier of L2-normalised tokens: ``[B, T, D]`` float32 to logits ``[B, C]``.

    Shapes: B batch, T tokens, D width, C classes.
    """

    generator: torch.Generator | None = None
    """Where dropout masks are drawn from; None is torch's global generator. On the device of the head."""

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `x` ``[B, T, D]`` to logits ``[B, C]``."""
        raise NotImplementedError

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention weights ``[B, H, T]`` of tokens `x`; only heads whose entry says so have it."""
        raise NotImplementedError
