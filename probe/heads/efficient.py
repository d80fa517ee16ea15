"""Efficient probing: several learned queries attend to the tokens, which are neither projected to keys nor to values.

Source: "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency" (Psomas et al. 2025, arXiv 2506.10178)::

    y_q = sum_t softmax_t(u_q . z_t / sqrt(D)) z_t        logits = W BN([y_1; ...; y_Q]) + b

with z the tokens after a layer norm without affine part. The source's default still projects values and gives every query a slice
of the channels; without that projection, a slice would be arbitrary, so every query keeps all D channels.

Shapes: M members, B batch, T tokens, D width, C classes, Q queries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.probing.heads.parts import BatchNorm, Linear, as_products, check_count, normalize, replicate


class EfficientHead(Head):
    """Attention of Q queries to T tokens, BatchNorm, and an affine map to C classes."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_queries: int = 4,
    ) -> None:
        """Build M heads of Q queries, initialized N(0, 0.02^2).

        Raises:
            RequestError: fewer than 1 query.
        """
        super().__init__(num_tokens, width, num_classes, dropouts)
        check_count("efficient", "query", num_queries)
        self.num_queries = num_queries
        self.queries = replicate(torch.empty(num_queries, width).normal_(std=0.02), self.num_members)
        self.batch_norm = BatchNorm(self.num_members, num_queries * width)
        self.classifier = Linear(self.num_members, num_queries * width, num_classes)

    @property
    def options(self) -> dict[str, int]:
        """The number of queries."""
        return {"num_queries": self.num_queries}

    @property
    def activations(self) -> int:
        """The pooled tokens of all queries, before and after the norm."""
        return 4 * self.num_queries * self.width

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Tensor:
        """Normalize the tokens."""
        return as_products(normalize(x))

    def classify(self, inputs: Tensor) -> Tensor:
        """Map normalized tokens to logits ``[M, B, C]``."""
        weights = self._weights(inputs).to(inputs.dtype)
        pooled = torch.bmm(weights.transpose(1, 2), inputs)  # [B, M * Q, D]
        pooled = pooled.view(len(inputs), self.num_members, -1).transpose(0, 1).to(self.queries.dtype)
        logits: Tensor = self.classifier(self.batch_norm(pooled))
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention weights ``[M, B, Q, T]`` of tokens `x`; they sum to 1."""
        weights = self._weights(normalize(x))
        return weights.view(*weights.shape[:2], self.num_members, -1).permute(2, 0, 3, 1)

    def _weights(self, tokens: Tensor) -> Tensor:
        """``[B, T, M * Q]``."""
        queries = self.queries.flatten(0, 1) * self.width**-0.5
        weights: Tensor = (tokens @ queries.T.to(tokens.dtype)).softmax(1, dtype=self.queries.dtype)
        return weights
