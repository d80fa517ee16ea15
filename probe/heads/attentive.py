"""Attentive layer fusion: one learned query attends to the tokens of all layers.

Method: "Beyond the final layer: Attentive multilayer fusion for vision transformers" (arXiv 2601.09322).
The module holds the parameters of the obvious implementation, but never projects the tokens. Three rearrangements, all exact,
also in the gradients:

- Keys. The query does not depend on the sample, so ``(W_k k_t) . q = k_t . (W_k^T q)``: the key projection of
  all tokens folds into H vectors of width D.
- Values. ``sum_t a_t W_v v_t = W_v (sum_t a_t v_t)``: the value projection is applied once per head.
- Norms. Without their affine parts, both norms of the tokens are the same for all members, and taken once per mini-batch. The
  affine parts move into the small matrices: a scale multiplies their columns; the bias of the keys adds the same to all
  tokens of a head, which softmax ignores; that of the values counts as often as the weights sum to.

Shapes: M members, B batch, T tokens, D width, C classes, H heads, h head width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from featcache.devices.transfer import send
from featcache.probing.heads.base import Head
from featcache.probing.heads.parts import BatchNorm, LayerNorm, Linear, as_products, normalize, replicate
from featcache.probing.heads.pooling import attention_pool, attention_weights
from featcache.store.errors import RequestError


class AttentiveHead(Head):
    """Attention of one query to T tokens, BatchNorm, and an affine map to C classes."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_heads: int | None = None,
    ) -> None:
        """Build M heads for inputs ``[B, num_tokens, width]``, with PyTorch's default initialization.

        Args:
            num_tokens: T.
            width: D.
            num_classes: C.
            dropouts: probability of dropping an attention weight in training, of every member.
            num_heads: H, by default T; the head width h is ``2 * (D // H)``.

        Raises:
            RequestError: H exceeds D.
        """
        super().__init__(num_tokens, width, num_classes, dropouts)
        self.num_heads = num_tokens if num_heads is None else num_heads
        if not 1 <= self.num_heads <= width:
            raise RequestError(
                f"the attentive head divides the token width ({width}) among its heads ({self.num_heads}), which gives "
                "them none; choose fewer heads or fewer layers"
            )
        self.head_width = 2 * (width // self.num_heads)
        members, inner = self.num_members, self.num_heads * self.head_width
        self.query = replicate(torch.empty(width).normal_(std=0.02), members)
        self.query_norm = LayerNorm(members, width)
        self.key_norm = LayerNorm(members, width)
        self.value_norm = LayerNorm(members, width)
        self.query_proj = Linear(members, width, inner, bias=False)
        self.key_proj = Linear(members, width, inner, bias=False)
        self.value_proj = Linear(members, width, inner, bias=False)
        self.output_proj = Linear(members, inner, width)
        self.batch_norm = BatchNorm(members, width)
        self.classifier = Linear(members, width, num_classes)

    @property
    def options(self) -> dict[str, int]:
        """The number of heads."""
        return {"num_heads": self.num_heads}

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> "AttentionInputs":
        """Normalize the tokens as both norms see them, and draw for dropout: all members drop by the same draws."""
        tokens = normalize(x)
        draws = None
        if dropout:
            shape = (*x.shape[:2], self.num_heads)
            draws = torch.rand(shape, generator=generator, dtype=x.dtype, device=x.device)
        return AttentionInputs(as_products(tokens), draws)

    def classify(self, inputs: "AttentionInputs") -> Tensor:
        """Map prepared tokens to logits ``[M, B, C]``."""
        pooled, offset, total = attention_pool(
            inputs.tokens,
            self._folded_keys(),
            self.value_proj.weight,
            self.value_norm.weight,
            self.value_norm.bias,
            self._mask(inputs.draws),
        )
        # What the bias of the value norm adds, head by head, goes through the output projection as H more samples.
        own = torch.eye(self.num_heads, dtype=offset.dtype, device=offset.device)
        by_head = offset.unsqueeze(1) * own.repeat_interleave(self.head_width, 1)  # [M, H, H * h]
        out = self.output_proj.multiply(torch.cat((pooled, by_head.to(pooled.dtype)), dim=1)).to(
            self.query.dtype
        )
        out, by_head = out[:, : pooled.shape[1]], out[:, pooled.shape[1] :]
        # It counts as often as the weights of a sample sum to: [M, B, H] @ [M, H, D]
        out = out + (torch.bmm(total, by_head) if total.numel() else by_head.sum(1, keepdim=True))
        logits: Tensor = self.classifier(self.batch_norm(self.output_proj.add_bias(out)))
        return logits

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention weights ``[M, B, H, T]`` of tokens `x` ``[B, T, D]``, without dropout; they sum to 1."""
        return attention_weights(normalize(x), self._folded_keys()).permute(2, 0, 3, 1)

    def _folded_keys(self) -> Tensor:
        """``W_k^T q`` of every head, with the scale of scores and of the norm: ``[M, H, D]``."""
        with torch.autocast(self.query.device.type, enabled=False):
            # [M, D] -> [M * H, 1, h], and W_k [M, H * h, D] -> [M * H, h, D]
            query = self.query_proj(self.query_norm(self.query).unsqueeze(1)).view(-1, 1, self.head_width)
            key = self.key_proj.weight.view(-1, self.head_width, self.width)
            folded = torch.bmm(query * self.head_width**-0.5, key).view(-1, self.num_heads, self.width)
            return folded * self.key_norm.weight.unsqueeze(1)

    def _mask(self, draws: Tensor | None) -> Tensor | None:
        """Dropout masks ``[B, T, M * H]`` of draws ``[B, T, H]``; None if no member of this head drops."""
        if draws is None or not any(self.dropouts):
            return None
        p = send(torch.tensor(self.dropouts, dtype=draws.dtype), draws.device).unsqueeze(1)
        return torch.where(draws.unsqueeze(2) >= p, 1 / (1 - p), 0.0).flatten(2)


class AttentionInputs(NamedTuple):
    """What all members share of a mini-batch."""

    tokens: Tensor
    """``[B, T, D]``, in the type of matrix products."""
    draws: Tensor | None
    """Uniform, ``[B, T, H]``, for dropout."""
