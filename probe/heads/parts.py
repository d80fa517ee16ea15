"""Parts of heads with a leading member axis: what torch.nn has, for M members at once.

Every part is initialized as its namesake in torch.nn, from the same draws; all members start alike.

Shapes: M members, B batch, I and O input and output features.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from featcache.probing.heads.scratch import buffers, scratch, use
from featcache.store.errors import RequestError


def replicate(tensor: Tensor, num_members: int) -> nn.Parameter:
    """Return a parameter that holds `tensor` once for every member."""
    return nn.Parameter(tensor.detach().expand(num_members, *tensor.shape).clone())


def as_products(x: Tensor) -> Tensor:
    """Bring `x` into the type that matrix products run in, once for all members."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def normalize(x: Tensor) -> Tensor:
    """Layer norm over the last axis, without the affine part: the same for all members."""
    return F.layer_norm(x, x.shape[-1:], eps=LayerNorm.eps)


def check_count(head: str, noun: str, number: int) -> None:
    """Refuse a head that would have none of its units, queries or groups.

    Raises:
        RequestError: the number is below 1.
    """
    if number < 1:
        raise RequestError(f"the {head} head needs at least 1 {noun}, not {number}")


class Linear(nn.Module):
    """`torch.nn.Linear` for M members: weight ``[M, O, I]``, bias ``[M, O]``."""

    def __init__(self, num_members: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        linear = nn.Linear(in_features, out_features, bias)
        self.weight = replicate(linear.weight, num_members)
        self.bias = replicate(linear.bias, num_members) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `x`, ``[B, I]`` for all members or ``[M, B, I]`` of each, to ``[M, B, O]``."""
        return self.add_bias(self.multiply(x))

    def add_bias(self, out: Tensor) -> Tensor:
        """Add the bias, if there is one, to `out` ``[M, B, O]``."""
        return out if self.bias is None else out + self.bias.unsqueeze(1)

    def multiply(self, x: Tensor) -> Tensor:
        """The matrix product alone, from and to the shapes of `forward`."""
        weight = self.weight
        if x.ndim == 2 and x.dtype is not weight.dtype and not x.requires_grad:
            with torch.autocast(x.device.type, enabled=False):  # the types are given
                product: Tensor = _SharedProduct.apply(x, weight)
            return product.view(len(x), *weight.shape[:2]).transpose(0, 1)
        if x.ndim == 2:
            # One product for all members: [B, I] @ [I, M * O] -> [M, B, O]
            return (x @ weight.flatten(0, 1).T).view(len(x), *weight.shape[:2]).transpose(0, 1)
        # This way round, the gradient of the weight comes as the weight lies in memory.
        return torch.bmm(weight, x.transpose(1, 2)).transpose(1, 2)


class _SharedProduct(torch.autograd.Function):
    """``x @ weight^T`` for M weights of float32, in the narrower type of `x`: ``[B, I]`` to ``[B, M * O]``.

    What autocast does, but casts go through buffers that are used again: a weight of all layers is so large, and so little is
    done with it, that fresh memory would take longer than the product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        narrow = scratch("weight", weight.numel(), x).view(-1, weight.shape[2]).copy_(weight.flatten(0, 1))
        ctx.save_for_backward(x)
        ctx.buffers = buffers()
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return x @ narrow.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        with use(ctx.buffers):
            narrow = scratch("gradient", ctx.shape.numel(), x).view(-1, ctx.shape[2])
        torch.mm(grad.T, x, out=narrow)
        return None, narrow.to(ctx.dtype).view(ctx.shape)


class LayerNorm(nn.Module):
    """`torch.nn.LayerNorm` for M members: weight and bias ``[M, I]``."""

    eps = 1e-5

    def __init__(self, num_members: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_members, features))
        self.bias = nn.Parameter(torch.zeros(num_members, features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` ``[M, I]``."""
        normalized: Tensor = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return normalized * self.weight + self.bias


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d` for M members: all parameters and running statistics ``[M, I]``."""

    running_mean: Tensor
    running_var: Tensor
    eps = 1e-5
    momentum = 0.1

    def __init__(self, num_members: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_members, features))
        self.bias = nn.Parameter(torch.zeros(num_members, features))
        self.register_buffer("running_mean", torch.zeros(num_members, features))
        self.register_buffer("running_var", torch.ones(num_members, features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` ``[M, B, I]`` over the batch; in training this moves the running statistics."""
        num_members, batch, features = x.shape
        # M norms of I channels are one of M * I channels.
        flat: Tensor = F.batch_norm(
            x.transpose(0, 1).reshape(batch, num_members * features),
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.view(-1),
            self.bias.view(-1),
            self.training,
            self.momentum,
            self.eps,
        )
        return flat.view(batch, num_members, features).transpose(0, 1)
