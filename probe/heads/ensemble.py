"""An ensemble of linear probes, one per layer.

Source: averaging of predictors (Breiman 1996, "Bagging predictors"), here over layers instead of samples::

    logits = 1/L sum_l (W_l [x_l1; ...; x_lK] + b_l)

Every layer's map is trained by its own loss, as a linear probe alone is; only then are the logits averaged. (The average trained by
one loss would be the linear head.)

Shapes: M members, B batch, L layers, K token kinds, D width, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featcache.probing.heads.layerwise import LayerwiseHead
from featcache.probing.heads.parts import as_products, replicate


class EnsembleHead(LayerwiseHead):
    """L linear probes, each trained by its own loss, that answer together. Their gradients are clipped by one norm."""

    name = "ensemble"

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_layers: int | None = None,
    ) -> None:
        """Build M heads; T = L * K tokens, layer by layer (by default L = T), with PyTorch's default initialization.

        Raises:
            RequestError: the tokens do not divide among the layers.
        """
        super().__init__(num_tokens, width, num_classes, dropouts, num_layers=num_layers)
        probes = [nn.Linear(self.num_kinds * width, num_classes) for _ in range(self.num_layers)]
        self.weight = replicate(torch.stack([probe.weight for probe in probes]), self.num_members)
        self.bias = replicate(torch.stack([probe.bias for probe in probes]), self.num_members)

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Tensor:
        """Sort tokens by layer: ``[B, T, D]`` to ``[L, B, K * D]``."""
        return self.by_layer(as_products(x)).transpose(0, 1).contiguous()

    def classify(self, inputs: Tensor) -> Tensor:
        """Map sorted tokens to logits ``[M, B, C]``; in training mode to those of every layer, ``[M * L, B, C]``."""
        # [M, L, C, KD] -> [L, M * C, KD]
        weight = self.weight.transpose(0, 1).flatten(1, 2).to(inputs.dtype)
        logits = torch.bmm(inputs, weight.transpose(1, 2)).to(self.bias.dtype)  # [L, B, M * C]
        logits = logits.view(*logits.shape[:2], self.num_members, -1).permute(2, 0, 1, 3)
        logits = logits + self.bias.unsqueeze(2)
        return logits.flatten(0, 1) if self.training else logits.mean(1)
