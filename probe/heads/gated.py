"""Gates over layers that depend on the image.

Source: the gating of cross-layer feature pyramids, which weigh levels by their pooled context::

    c = mean_t z_t        g = softmax(W_g c + b_g)        y_k = sum_l g_l z_lk        logits = W BN([y_1; ...; y_K]) + b

with z the tokens after a layer norm without affine part.

Shapes: M members, B batch, L layers, K token kinds, D width, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from featcache.probing.heads.layerwise import LayerwiseHead
from featcache.probing.heads.parts import BatchNorm, Linear, as_products, normalize


class GatedHead(LayerwiseHead):
    """A sum over layers with weights from the image's mean token, BatchNorm, and an affine map to C classes."""

    name = "gated"

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_layers: int | None = None,
    ) -> None:
        """Build M heads; T = L * K tokens, layer by layer (by default L = T).

        Raises:
            RequestError: the tokens do not divide among the layers.
        """
        super().__init__(num_tokens, width, num_classes, dropouts, num_layers=num_layers)
        self.gate = Linear(self.num_members, width, self.num_layers)
        self.batch_norm = BatchNorm(self.num_members, self.num_kinds * width)
        self.classifier = Linear(self.num_members, self.num_kinds * width, num_classes)

    @property
    def activations(self) -> int:
        """The gated sums, before and after the norm."""
        return 4 * self.num_kinds * self.width

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> "GateInputs":
        """Normalize the tokens and average them."""
        tokens = normalize(x)
        return GateInputs(as_products(self.by_layer(tokens)), as_products(tokens.mean(1)))

    def classify(self, inputs: "GateInputs") -> Tensor:
        """Map normalized tokens to logits ``[M, B, C]``."""
        gates = self._gates(inputs.context).transpose(0, 1).to(inputs.layers.dtype)  # [B, M, L]
        pooled = torch.bmm(gates, inputs.layers).transpose(0, 1).to(self.batch_norm.weight.dtype)
        logits: Tensor = self.classifier(self.batch_norm(pooled))
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """Return the gates as attention ``[M, B, 1, T]``: that of a layer is shared by its tokens; they sum to 1."""
        gates = self._gates(normalize(x).mean(1)) / self.num_kinds
        return gates.repeat_interleave(self.num_kinds, 2).unsqueeze(2)

    def _gates(self, context: Tensor) -> Tensor:
        """``[M, B, L]``."""
        scores: Tensor = self.gate(context)
        return scores.softmax(2, dtype=self.batch_norm.weight.dtype)


class GateInputs(NamedTuple):
    """What all members share of a mini-batch."""

    layers: Tensor
    """``[B, L, K * D]``."""
    context: Tensor
    """``[B, D]``."""
