"""Attentive statistics: weighted mean and standard deviation over the tokens of all layers.

Source: attentive statistics pooling (Okabe, Koshinaka and Shinoda 2018, arXiv 1803.10963), which pools the frames of an utterance;
here the frames are the tokens::

    a = softmax_t(v . tanh(W_a z_t + b_a))    m = sum_t a_t z_t    s = sqrt(sum_t a_t z_t^2 - m^2)    logits = W BN([m; s]) + b

with z the tokens after a layer norm without affine part.

Shapes: M members, B batch, T tokens, D width, C classes, R hidden width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.probing.heads.parts import BatchNorm, Linear, as_products, check_count, normalize, replicate

# Of a variance: its root has no gradient at 0.
LEAST_VARIANCE = 1e-5


class StatsHead(Head):
    """Attentive mean and deviation over T tokens, BatchNorm, and an affine map to C classes."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        hidden: int = 64,
    ) -> None:
        """Build M heads whose attention has `hidden` units.

        Raises:
            RequestError: there is no hidden unit.
        """
        super().__init__(num_tokens, width, num_classes, dropouts)
        check_count("stats", "hidden unit", hidden)
        self.hidden = hidden
        self.score_proj = Linear(self.num_members, width, hidden)
        self.score = replicate(torch.empty(hidden).normal_(std=hidden**-0.5), self.num_members)
        self.batch_norm = BatchNorm(self.num_members, 2 * width)
        self.classifier = Linear(self.num_members, 2 * width, num_classes)

    @property
    def options(self) -> dict[str, int]:
        """The hidden width."""
        return {"hidden": self.hidden}

    @property
    def activations(self) -> int:
        """The hidden units of all tokens, and the statistics."""
        return 2 * self.num_tokens * self.hidden + 8 * self.width

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> "StatsInputs":
        """Normalize the tokens and square them."""
        tokens = normalize(x)
        return StatsInputs(as_products(tokens), as_products(torch.cat((tokens, tokens.square()), dim=2)))

    def classify(self, inputs: "StatsInputs") -> Tensor:
        """Map normalized tokens to logits ``[M, B, C]``."""
        weights = self._weights(inputs.tokens)
        moments = torch.bmm(weights.to(inputs.moments.dtype), inputs.moments)  # [B, M, 2D]
        mean, square = moments.transpose(0, 1).to(weights.dtype).chunk(2, dim=2)
        deviation = (square - mean.square()).clamp(min=LEAST_VARIANCE).sqrt()
        logits: Tensor = self.classifier(self.batch_norm(torch.cat((mean, deviation), dim=2)))
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """Return the weights ``[M, B, 1, T]`` of tokens `x`; they sum to 1."""
        return self._weights(normalize(x)).transpose(0, 1).unsqueeze(2)

    def _weights(self, tokens: Tensor) -> Tensor:
        """``[B, M, T]``."""
        batch, count, _ = tokens.shape
        hidden = self.score_proj(tokens.flatten(0, 1)).tanh()  # [M, B * T, R]
        scores = (hidden * self.score.unsqueeze(1).to(hidden.dtype)).sum(2).view(-1, batch, count)
        weights: Tensor = scores.softmax(2, dtype=self.score.dtype)
        return weights.transpose(0, 1)


class StatsInputs(NamedTuple):
    """What all members share of a mini-batch."""

    tokens: Tensor
    """``[B, T, D]``."""
    moments: Tensor
    """Tokens and their squares, ``[B, T, 2D]``."""
