"""Attentive layer fusion: one learned query attends to the tokens of all layers.

Method: "Beyond the final layer: Attentive multilayer fusion for vision transformers" (arXiv 2601.09322).
The module holds the parameters of the obvious implementation, but works on the tokens without projecting
them. Three rearrangements, all exact, also in the gradients:

- Keys. The query does not depend on the sample, so ``(W_k k_t) . q = k_t . (W_k^T q)``: the key projection of
  all tokens folds into H vectors of width D.
- Values. ``sum_t a_t W_v v_t = W_v (sum_t a_t v_t)``: the value projection is applied once per head.
- Norms. A normalised token is ``r (x - mu)``, so ``k_t . w = r (x . w - mu sum(w))``: it is never formed, and the
  affine parts of the norms move into the small matrices.

Shapes: B batch, T tokens, D width, C classes, H heads, h head width.
"""

import torch
from torch import Tensor, nn

from featcache.probe.heads.base import Head
from featcache.store.errors import RequestError


class AttentiveHead(Head):
    """Attention of one query to T tokens, BatchNorm, and an affine map to C classes."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropout: float = 0.0,
        *,
        num_heads: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Build the head for inputs ``[B, num_tokens, width]``, with PyTorch's default initialisation.

        Args:
            num_tokens: T.
            width: D.
            num_classes: C.
            dropout: probability of dropping an attention weight in training.
            num_heads: H, by default T; the head width h is ``2 * (D // H)``.
            generator: where dropout masks are drawn from; None is torch's global one.

        Raises:
            RequestError: H exceeds D.
        """
        super().__init__()
        self.num_heads = num_tokens if num_heads is None else num_heads
        if width < self.num_heads:
            raise RequestError(
                f"the attentive head splits the token width ({width}) among its heads ({self.num_heads}), which are "
                "too many; choose fewer heads or fewer layers"
            )
        self.head_width = 2 * (width // self.num_heads)
        self.dropout = dropout
        self.generator = generator
        inner = self.num_heads * self.head_width
        self.query = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.query, std=0.02)
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width)
        self.value_norm = nn.LayerNorm(width)
        self.query_proj = nn.Linear(width, inner, bias=False)
        self.key_proj = nn.Linear(width, inner, bias=False)
        self.value_proj = nn.Linear(width, inner, bias=False)
        self.output_proj = nn.Linear(inner, width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `x` ``[B, T, D]``, L2-normalised and perhaps jittered, to logits ``[B, C]``."""
        mean, rstd = _statistics(x, self.key_norm.eps)
        weights = self._drop(self._attend(x, mean, rstd))
        pooled = self._pool(x, mean, rstd, weights)
        logits: Tensor = self.classifier(self.batch_norm(self.output_proj(pooled)))
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention weights ``[B, H, T]`` of tokens `x` ``[B, T, D]``, without dropout; they sum to 1."""
        return self._attend(x, *_statistics(x, self.key_norm.eps))

    def _attend(self, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """Softmax over the tokens of every head's scores, ``[B, H, T]``."""
        # [D] -> [H, 1, h], and W_k [H * h, D] -> [H, h, D]
        query = self.query_proj(self.query_norm(self.query)).view(self.num_heads, 1, self.head_width)
        key_weight = self.key_proj.weight.view(self.num_heads, self.head_width, -1)
        # W_k^T q, scaled: [H, D]
        folded = torch.bmm(query * self.head_width**-0.5, key_weight).squeeze(1)
        by_channel = folded * self.key_norm.weight
        # [B, T, H]
        scores = x @ by_channel.T - mean.unsqueeze(-1) * by_channel.sum(dim=1)
        # The norm's bias adds the same to all tokens, which softmax ignores; kept so that it has a gradient.
        scores = scores * rstd.unsqueeze(-1) + folded @ self.key_norm.bias
        return scores.transpose(1, 2).softmax(dim=-1)

    def _drop(self, weights: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return weights
        keep = torch.empty_like(weights).bernoulli_(1 - self.dropout, generator=self.generator)
        return weights * keep / (1 - self.dropout)

    def _pool(self, x: Tensor, mean: Tensor, rstd: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum over the tokens of every head's values, ``[B, H * h]``."""
        # W_v [H * h, D] -> [H, h, D]
        value_weight = self.value_proj.weight.view(self.num_heads, self.head_width, -1)
        by_channel = value_weight * self.value_norm.weight
        scaled = weights * rstd.unsqueeze(1)  # [B, H, T]
        # sum_t a_t r_t x_t, head first: [H, B, D] @ [H, D, h] -> [H, B, h]
        projected = torch.bmm(torch.bmm(scaled, x).transpose(0, 1), by_channel.transpose(1, 2))
        # sum_t a_t r_t mu_t: [H, B, 1], times what a constant vector projects to: [H, 1, h]
        offset = (scaled @ mean.unsqueeze(-1)).transpose(0, 1)
        projected = projected - offset * by_channel.sum(dim=2).unsqueeze(1)
        # The norm's bias counts as often as the weights sum to: 1, but for dropout. [H, B, 1] * [H, 1, h]
        total = weights.sum(dim=2).T.unsqueeze(-1)
        projected = projected + total * (value_weight @ self.value_norm.bias).unsqueeze(1)
        # [H, B, h] -> [B, H * h]
        return projected.transpose(0, 1).flatten(1)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and reciprocal deviation of every token as LayerNorm uses them, both ``[B, T]``.

    The variance is taken from the norm, twenty times faster on a CPU than `torch.var_mean`: tokens are about 1
    long, so its rounding error is far below `eps`.
    """
    mean = x.mean(dim=-1)
    mean_square = torch.linalg.vector_norm(x, dim=-1).square() / x.shape[-1]
    variance = (mean_square - mean.square()).clamp(min=0)
    return mean, (variance + eps).rsqrt()
