"""Attention pooling of the same tokens by many queries and value projections at once, forward and backward.

What a head computes of its tokens z ``[B, T, D]``, for every member m and head h::

    weights = softmax over t of (z_t . key)
    pooled = value @ (scale * sum over t of weights_t z_t)        offset = value @ bias

The tokens take part in two matrix products forward and their transposes backward; nothing of the size of all projected tokens
(T x H x h) exists. The sums over t are as large as the tokens, once for each member and head, so they are formed tile by tile, in
buffers that stay in the processor's cache, and formed again in the backward pass.

Products run in the type of the tokens; softmax, its gradient and the sums of gradients over tiles in that of the parameters.

Shapes: M members, B batch, T tokens, D width, H heads, h head width, n = M * H, b samples of a tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from featcache.probing.heads.scratch import buffers, scratch, use

# Bytes of the sums over tokens of one tile: on a CPU they should stay in the cache.
TILE_BYTES = {"cpu": 2**23}
DEFAULT_TILE_BYTES = 2**30


def attention_weights(tokens: Tensor, keys: Tensor) -> Tensor:
    """Softmax over `tokens` ``[B, T, D]`` of their products with `keys` ``[M, H, D]``: ``[B, T, M, H]``."""
    weights = (tokens @ keys.flatten(0, 1).T).softmax(1)
    return weights.view(*tokens.shape[:2], *keys.shape[:2])


def attention_pool(
    tokens: Tensor, keys: Tensor, value: Tensor, scale: Tensor, bias: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool the tokens by every head's attention, and project what was pooled.

    Args:
        tokens: ``[B, T, D]``, in the type that products are to run in; without gradient.
        keys: ``[M, H, D]``.
        value: ``[M, H * h, D]``, heads one after another.
        scale: ``[M, D]``, multiplies the tokens before they are projected.
        bias: ``[M, D]``.
        mask: multiplies the weights, ``[B, T, M * H]``: 0 where one is dropped, else 1 / (1 - p); None for no dropout.

    Returns:
        pooled ``[M, B, H * h]``, offset ``[M, H * h]``, and, with a mask, what the weights sum to, ``[M, B, H]``
        (else empty).
    """
    with torch.autocast(tokens.device.type, enabled=False):  # the types are given
        pooled, offset, total = _AttentionPool.apply(tokens, keys, value, scale, bias, mask)
    # [M, H, B, h] -> [M, B, H * h]
    return pooled.transpose(1, 2).flatten(2), offset, total


class _Sums:
    """The sums over tokens of one tile, ordered by sample and by head, in buffers that are used again and again."""

    def __init__(self, tokens: Tensor, num_heads: int) -> None:
        self._tokens = tokens
        self._heads = num_heads
        batch, _, width = tokens.shape
        most_bytes = TILE_BYTES.get(tokens.device.type, DEFAULT_TILE_BYTES)
        most = most_bytes // (num_heads * width * tokens.element_size())
        num_tiles = -(-batch // max(1, most))
        self._step = -(-batch // num_tiles)  # tiles of the same size
        self._buffers = [
            scratch(name, self._step * num_heads * width, tokens, most_bytes) for name in ("sample", "head")
        ]

    def tiles(self) -> Iterator[slice]:
        """The samples of tile after tile."""
        for start in range(0, len(self._tokens), self._step):
            yield slice(start, min(start + self._step, len(self._tokens)))

    def pool(self, weights: Tensor, samples: slice) -> Tensor:
        """``sum_t weights_t z_t``: weights ``[b, T, n]`` to ``[n, b, D]``."""
        tokens = self._tokens[samples]
        by_sample, by_head = self._views(len(tokens))
        torch.bmm(weights.transpose(1, 2), tokens, out=by_sample)
        # A product of one head for all samples wants them side by side.
        return by_head.copy_(by_sample.transpose(0, 1))

    def backward(self, grad: Tensor, value: Tensor, samples: slice) -> Tensor:
        """Gradient of the weights ``[b, T, n]``, from that of the projected ``[n, b, h]`` and the value ``[n, h, D]``."""
        tokens = self._tokens[samples]
        by_sample, by_head = self._views(len(tokens))
        torch.bmm(grad, value, out=by_head)
        return torch.bmm(tokens, by_sample.copy_(by_head.transpose(0, 1)).transpose(1, 2))

    def _views(self, samples: int) -> tuple[Tensor, Tensor]:
        """``[b, n, D]`` and ``[n, b, D]``."""
        width = self._tokens.shape[2]
        flat = [buffer[: samples * self._heads * width] for buffer in self._buffers]
        return flat[0].view(samples, self._heads, width), flat[1].view(self._heads, samples, width)


class _AttentionPool(torch.autograd.Function):
    """See `attention_pool`; gives pooled as ``[M, H, B, h]``, in the order of the products."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        keys: Tensor,
        value: Tensor,
        scale: Tensor,
        bias: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (batch, _, width), (members, heads, _) = tokens.shape, keys.shape
        n, kind = members * heads, tokens.dtype
        scores = tokens.flatten(0, 1) @ keys.to(kind).view(n, width).T
        weights = scores.view(batch, -1, n).softmax(1, dtype=keys.dtype)  # [B, T, n]
        dropped = weights if mask is None else weights * mask
        factors = dropped.to(kind)
        scaled = _scaled(value, scale, tokens).view(n, -1, width)  # [n, h, D]
        transposed = scaled.transpose(1, 2).contiguous()
        pooled = tokens.new_empty((n, batch, scaled.shape[1]))
        sums = _Sums(tokens, n)
        for samples in sums.tiles():
            pooled[:, samples] = torch.bmm(sums.pool(factors[samples], samples), transposed)
        offset = torch.bmm(value, bias.unsqueeze(2)).squeeze(2)
        total = keys.new_empty(0)
        if mask is not None:
            total = dropped.sum(1).view(batch, members, heads).transpose(0, 1)
        ctx.save_for_backward(tokens, value, scale, bias, weights, factors, mask)
        ctx.buffers = buffers()
        return pooled.view(members, heads, batch, -1), offset, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_pooled: Tensor, grad_offset: Tensor, grad_total: Tensor
    ) -> tuple[Tensor | None, ...]:
        with use(ctx.buffers):
            return _AttentionPool._gradients(ctx, grad_pooled, grad_offset, grad_total)

    @staticmethod
    def _gradients(
        ctx: Any, grad_pooled: Tensor, grad_offset: Tensor, grad_total: Tensor
    ) -> tuple[Tensor | None, ...]:
        tokens, value, scale, bias, weights, factors, mask = ctx.saved_tensors
        (members, _, width), (batch, _, n), kind = value.shape, weights.shape, tokens.dtype
        scaled = _scaled(value, scale, tokens).view(n, -1, width)
        grad_pooled = grad_pooled.reshape(n, batch, -1)
        grad_value = torch.zeros_like(value)
        grad_weights = torch.empty_like(weights)
        sums = _Sums(tokens, n)
        for samples in sums.tiles():
            grad = grad_pooled[:, samples].contiguous()
            pooled = sums.pool(factors[samples], samples)
            grad_value.view(n, -1, width).add_(torch.bmm(grad.transpose(1, 2), pooled))
            grad_weights[samples] = sums.backward(grad, scaled, samples)
        if mask is not None:
            grad_weights += grad_total.transpose(0, 1).reshape(batch, 1, n)
            grad_weights *= mask
        grad_scores = torch._softmax_backward_data(grad_weights, weights, 1, weights.dtype)
        grad_keys = grad_scores.view(-1, n).to(kind).T @ tokens.flatten(0, 1)
        # So far, grad_value is that of the scaled projection.
        product = scratch("product", value.numel(), value).view(value.shape)
        grad_scale = torch.mul(grad_value, value, out=product).sum(1)
        grad_value *= scale.unsqueeze(1)
        grad_value.baddbmm_(grad_offset.unsqueeze(2), bias.unsqueeze(1))
        grad_bias = torch.bmm(grad_offset.unsqueeze(1), value).squeeze(1)
        return (
            None,
            grad_keys.view(members, -1, width).to(weights.dtype),
            grad_value,
            grad_scale,
            grad_bias,
            None,
        )


def _scaled(value: Tensor, scale: Tensor, tokens: Tensor) -> Tensor:
    """``value * scale`` in the type of the tokens, in a buffer that is used again."""
    out = scratch("value", value.numel(), tokens).view(value.shape)
    return torch.mul(value, scale.unsqueeze(1), out=out)
