"""The heads written down the obvious way, to hold the fast ones against.

The attentive module follows the description of arXiv 2601.09322 line by line: it normalises all tokens and
materialises all keys and values. Names and order of the parts are those of the fast heads, so that a state dict
fits both and one seed initialises both alike.

Shapes: B batch, T tokens, D width, C classes, H heads, h head width.
"""

import torch
from torch import Tensor, nn


class ObviousAttentiveHead(nn.Module):
    """Attentive layer fusion with keys and values for every token."""

    def __init__(self, width: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = 2 * (width // num_heads)
        inner = num_heads * self.head_width
        self.query = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width)
        self.value_norm = nn.LayerNorm(width)
        self.query_proj = nn.Linear(width, inner, bias=False)
        self.key_proj = nn.Linear(width, inner, bias=False)
        self.value_proj = nn.Linear(width, inner, bias=False)
        self.output_proj = nn.Linear(inner, width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, num_classes)

    def attention(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T]."""
        batch, tokens, _ = x.shape
        query = self.query_proj(self.query_norm(self.query)).view(self.num_heads, self.head_width)
        keys = self.key_proj(self.key_norm(x)).view(batch, tokens, self.num_heads, self.head_width)
        scores = torch.einsum("hk,bthk->bht", query, keys) * self.head_width**-0.5
        return scores.softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, C]; `mask` [B, H, T] holds 0 where a weight is dropped, else 1 / (1 - p)."""
        batch, tokens, _ = x.shape
        weights = self.attention(x)
        if mask is not None:
            weights = weights * mask
        values = self.value_proj(self.value_norm(x)).view(batch, tokens, self.num_heads, self.head_width)
        pooled = torch.einsum("bht,bthk->bhk", weights, values).flatten(1)
        return self.classifier(self.batch_norm(self.output_proj(pooled)))


class ObviousLinearHead(nn.Module):
    """One affine map of the concatenated tokens."""

    def __init__(self, num_tokens: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(num_tokens * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, C]."""
        tokens = [x[:, t] for t in range(x.shape[1])]
        return self.classifier(torch.cat(tokens, dim=1))
