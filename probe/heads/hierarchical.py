"""Hierarchical attention: inside groups of neighboring layers, then across the groups.

Source: the layer-by-layer hierarchical attention of LLHA-Net, reduced to what cached tokens allow::

    g_j = sum_{t in group j} softmax_t(u_j . z_t / sqrt(D)) z_t
    y = sum_j softmax_j(v . LN(g_j) / sqrt(D)) g_j        logits = W BN(y) + b

with z the tokens after a layer norm without affine part.

Shapes: M members, B batch, T tokens, D width, C classes, G groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from featcache.probing.heads.layerwise import LayerwiseHead
from featcache.probing.heads.parts import BatchNorm, Linear, as_products, check_count, normalize, replicate


class HierarchicalHead(LayerwiseHead):
    """Attention of one query to each of G groups of layers, of one more to the groups; BatchNorm; affine map."""

    name = "hierarchical"

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_layers: int | None = None,
        num_groups: int = 4,
    ) -> None:
        """Build M heads; T = L * K tokens, layer by layer (by default L = T), in at most `num_groups` groups.

        Raises:
            RequestError: the tokens do not divide among the layers, or there is no group.
        """
        super().__init__(num_tokens, width, num_classes, dropouts, num_layers=num_layers)
        check_count(self.name, "group", num_groups)
        self.num_groups = min(num_groups, self.num_layers)
        layers = torch.arange(self.num_layers, device="cpu").tensor_split(self.num_groups)
        self._tokens = [len(group) * self.num_kinds for group in layers]
        self.queries = replicate(torch.empty(self.num_groups, width).normal_(std=0.02), self.num_members)
        self.query = replicate(torch.empty(width).normal_(std=0.02), self.num_members)
        self.batch_norm = BatchNorm(self.num_members, width)
        self.classifier = Linear(self.num_members, width, num_classes)

    @property
    def options(self) -> dict[str, int]:
        """The number of layers and of groups."""
        return super().options | {"num_groups": self.num_groups}

    @property
    def activations(self) -> int:
        """The groups, and what becomes of them."""
        return 3 * self.num_groups * self.width

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Tensor:
        """Normalize the tokens."""
        return as_products(normalize(x))

    def classify(self, inputs: Tensor) -> Tensor:
        """Map normalized tokens to logits ``[M, B, C]``."""
        _, across, groups = self._pool(inputs)
        pooled = (across.unsqueeze(3) * groups).sum(2).transpose(0, 1)
        logits: Tensor = self.classifier(self.batch_norm(pooled))
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """Return the product of both attentions, ``[M, B, 1, T]``; it sums to 1."""
        inside, across, _ = self._pool(normalize(x))
        weights = [part * across[:, :, index, None] for index, part in enumerate(inside)]
        return torch.cat(weights, dim=2).transpose(0, 1).unsqueeze(2)

    def _pool(self, tokens: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Weights inside every group ``[B, M, t]``, across groups ``[B, M, G]``, and the groups ``[B, M, G, D]``."""
        scale, dtype = self.width**-0.5, self.query.dtype
        inside, groups = [], []
        for index, part in enumerate(torch.split(tokens, self._tokens, dim=1)):
            scores = part @ (self.queries[:, index] * scale).T.to(part.dtype)  # [B, t, M]
            weights = scores.softmax(1, dtype=dtype).transpose(1, 2)
            inside.append(weights)
            groups.append(torch.bmm(weights.to(part.dtype), part).to(dtype))
        stacked = torch.stack(groups, dim=2)
        across = (normalize(stacked) * (self.query * scale).unsqueeze(1)).sum(3).softmax(2)
        return inside, across, stacked
