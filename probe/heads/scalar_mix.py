"""Scalar mixing: one learned weighted sum of layers.

Source: ELMo (Peters et al. 2018, arXiv 1802.05365), as SUPERB probes speech models (Yang et al. 2021, arXiv 2105.01051)::

    y_k = gamma_k * sum_l softmax(w_k)_l x_lk        logits = W [y_1; ...; y_K] + b

The sources have one kind of vector per layer; here every token kind has weights of its own.

Shapes: M members, B batch, L layers, K token kinds, D width, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featcache.probing.heads.layerwise import LayerwiseHead
from featcache.probing.heads.parts import Linear, as_products


class ScalarMixHead(LayerwiseHead):
    """A weighted sum over layers for each token kind, and an affine map to C classes."""

    name = "scalar-mix"

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_layers: int | None = None,
    ) -> None:
        """Build M heads; T = L * K tokens, layer by layer (by default L = T). All layers start with the same weight.

        Raises:
            RequestError: the tokens do not divide among the layers.
        """
        super().__init__(num_tokens, width, num_classes, dropouts, num_layers=num_layers)
        self.mix = nn.Parameter(torch.zeros(self.num_members, self.num_kinds, self.num_layers))
        self.gamma = nn.Parameter(torch.ones(self.num_members, self.num_kinds))
        self.classifier = Linear(self.num_members, self.num_kinds * width, num_classes)

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Tensor:
        """Sort tokens by kind: ``[B, T, D]`` to ``[K, L, B * D]``."""
        kinds = as_products(x).view(len(x), self.num_layers, self.num_kinds, self.width).permute(2, 1, 0, 3)
        return kinds.reshape(self.num_kinds, self.num_layers, -1)

    def classify(self, inputs: Tensor) -> Tensor:
        """Map sorted tokens to logits ``[M, B, C]``."""
        weights = self.mix.softmax(2) * self.gamma.unsqueeze(2)
        mixed = torch.bmm(weights.transpose(0, 1).to(inputs.dtype), inputs)  # [K, M, B * D]
        mixed = mixed.view(self.num_kinds, self.num_members, -1, self.width).permute(1, 2, 0, 3)
        logits: Tensor = self.classifier(mixed.flatten(2))
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """Return the weights of layers as attention ``[M, B, K, T]``: one head for each token kind; they sum to 1."""
        own = torch.eye(self.num_kinds, device=x.device)
        weights = self.mix.softmax(2).unsqueeze(3) * own.unsqueeze(1)  # [M, K, L, K]
        return weights.flatten(2).unsqueeze(1).expand(-1, len(x), -1, -1)
