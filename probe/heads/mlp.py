"""A multilayer perceptron on the concatenated tokens: the upper end of what a head without structure can do.

Source: back-propagation through one hidden layer (Rumelhart, Hinton and Williams 1986), with batch norm (Ioffe and Szegedy 2015,
arXiv 1502.03167), GELU (arXiv 1606.08415) and dropout (Srivastava et al. 2014)::

    logits = W_2 dropout(GELU(BN(W_1 [x_1; ...; x_T]))) + b

Shapes: M members, B batch, T tokens, D width, C classes, R hidden width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from featcache.probing.heads.base import Head
from featcache.probing.heads.parts import BatchNorm, Linear, as_products, check_count


class MlpHead(Head):
    """One hidden layer between the concatenated tokens and C classes."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        hidden: int = 256,
    ) -> None:
        """Build M heads with `hidden` units each.

        Raises:
            RequestError: there is no hidden unit.
        """
        super().__init__(num_tokens, width, num_classes, dropouts)
        check_count("mlp", "hidden unit", hidden)
        self.hidden = hidden
        self.hidden_proj = Linear(self.num_members, num_tokens * width, hidden, bias=False)
        self.batch_norm = BatchNorm(self.num_members, hidden)
        self.classifier = Linear(self.num_members, hidden, num_classes)

    @property
    def options(self) -> dict[str, int]:
        """The hidden width."""
        return {"hidden": self.hidden}

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> "MlpInputs":
        """Concatenate the tokens, and draw for dropout: all members drop by the same draws."""
        draws = None
        if dropout:
            shape = (len(x), self.hidden)
            draws = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
        return MlpInputs(as_products(x.flatten(1)), draws)

    def classify(self, inputs: "MlpInputs") -> Tensor:
        """Map concatenated tokens to logits ``[M, B, C]``."""
        hidden = self.hidden_proj(inputs.features).to(self.batch_norm.weight.dtype)
        hidden = F.gelu(self.batch_norm(hidden))
        if inputs.draws is not None and any(self.dropouts):
            p = hidden.new_tensor(self.dropouts).view(-1, 1, 1)
            hidden = hidden * torch.where(inputs.draws >= p, 1 / (1 - p), 0.0)
        logits: Tensor = self.classifier(hidden)
        return logits


class MlpInputs(NamedTuple):
    """What all members share of a mini-batch."""

    features: Tensor
    """``[B, T * D]``."""
    draws: Tensor | None
    """Uniform, ``[B, R]``, for dropout."""
