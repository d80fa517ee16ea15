"""The forward passes of a timm and an open_clip vision transformer written down the obvious way.

Plain tensor operations on a state dict and no module of either library, to hold the taps against: the equations are
those of "An Image is Worth 16x16 Words" (arXiv 2010.11929) with pre-norm blocks, LayerScale of arXiv 2103.17239 and
registers of arXiv 2309.16588, and CLIP's tower of arXiv 2103.00020.

Shapes: B batch, N tokens, D width, H heads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class ForwardPass:
    """What a backbone computes for a batch."""

    taps: dict[str, list[Tensor]]
    """What every tap sees, block by block, each ``[B, N, D]`` (``mlp``: ``[B, N, hidden]``)."""
    final: Tensor
    """All tokens after the final norm, ``[B, N, D]``."""
    output: Tensor
    """The model's own output."""


class Recorder:
    """Keeps what passes through it: ``taps.norm1(x)`` is ``x``."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {}

    def __getattr__(self, tap: str) -> Callable[[Tensor], Tensor]:
        def keep(tokens: Tensor) -> Tensor:
            self.seen.setdefault(tap, []).append(tokens)
            return tokens

        return keep


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def timm_forward(state: State, images: Tensor, num_heads: int) -> ForwardPass:
    """A timm `VisionTransformer` with class token, optional registers, LayerScale, norm before the blocks and head."""
    tokens = _patches(images, state["patch_embed.proj.weight"], state.get("patch_embed.proj.bias"))
    prefix = [state["cls_token"], *([state["reg_token"]] if "reg_token" in state else [])]
    prefix = [token.expand(len(images), -1, -1) for token in prefix]
    positions = state["pos_embed"]
    if (
        positions.shape[1] == tokens.shape[1]
    ):  # timm's no_embed_class: class token and registers have no position
        tokens = torch.cat([*prefix, tokens + positions], 1)
    else:
        tokens = torch.cat([*prefix, tokens], 1) + positions
    if "norm_pre.weight" in state:
        tokens = _norm(state, "norm_pre", tokens, 1e-6)
    taps = Recorder()
    for block in _blocks(state, "blocks"):
        normed = taps.norm1(_norm(state, f"{block}.norm1", tokens, 1e-6))
        qkv = _linear(state[f"{block}.attn.qkv.weight"], state[f"{block}.attn.qkv.bias"], normed)
        mixed = _linear(
            state[f"{block}.attn.proj.weight"], state[f"{block}.attn.proj.bias"], _attend(qkv, num_heads)
        )
        tokens = tokens + state.get(f"{block}.ls1.gamma", 1) * taps.attn(mixed)
        normed = taps.norm2(_norm(state, f"{block}.norm2", tokens, 1e-6))
        hidden = taps.mlp(
            gelu(_linear(state[f"{block}.mlp.fc1.weight"], state[f"{block}.mlp.fc1.bias"], normed))
        )
        added = _linear(state[f"{block}.mlp.fc2.weight"], state[f"{block}.mlp.fc2.bias"], hidden)
        tokens = taps.block(tokens + state.get(f"{block}.ls2.gamma", 1) * added)
    final = _norm(state, "norm", tokens, 1e-6)
    output = final[:, 0]
    if "head.weight" in state:
        output = _linear(state["head.weight"], state["head.bias"], output)
    return ForwardPass(taps.seen, final, output)


def open_clip_forward(
    state: State, images: Tensor, num_heads: int, activation: Callable[[Tensor], Tensor]
) -> ForwardPass:
    """open_clip's image tower, with LayerScale where it has one, down to the projected class token."""
    tokens = _patches(images, state["conv1.weight"], None)
    class_token = state["class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([class_token, tokens], 1) + state["positional_embedding"]
    tokens = _norm(state, "ln_pre", tokens, 1e-5)
    taps = Recorder()
    for block in _blocks(state, "transformer.resblocks"):
        normed = taps.norm1(_norm(state, f"{block}.ln_1", tokens, 1e-5))
        qkv = _linear(state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"], normed)
        mixed = _linear(
            state[f"{block}.attn.out_proj.weight"],
            state[f"{block}.attn.out_proj.bias"],
            _attend(qkv, num_heads),
        )
        tokens = tokens + state.get(f"{block}.ls_1.gamma", 1) * taps.attn(mixed)
        normed = taps.norm2(_norm(state, f"{block}.ln_2", tokens, 1e-5))
        hidden = taps.mlp(
            activation(_linear(state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"], normed))
        )
        added = _linear(state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"], hidden)
        tokens = taps.block(tokens + state.get(f"{block}.ls_2.gamma", 1) * added)
    final = _norm(state, "ln_post", tokens, 1e-5)
    return ForwardPass(taps.seen, final, final[:, 0] @ state["proj"])


def _blocks(state: State, prefix: str) -> list[str]:
    depth = prefix.count(".") + 1
    indices = {int(name.split(".")[depth]) for name in state if name.startswith(f"{prefix}.")}
    return [f"{prefix}.{index}" for index in sorted(indices)]


def _patches(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution whose stride is its size is one linear map a patch: ``[B, 3, S, S]`` to ``[B, patches, D]``."""
    size = weight.shape[-1]
    cut = images.unfold(2, size, size).unfold(3, size, size)  # [B, 3, rows, columns, size, size]
    flat = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return _linear(weight.flatten(1), bias, flat)


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    y = x @ weight.T
    return y if bias is None else y + bias


def _norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def _attend(qkv: Tensor, num_heads: int) -> Tensor:
    """Softmax attention of ``[B, N, 3 D]`` queries, keys and values, to ``[B, N, D]``."""
    batch, tokens, triple = qkv.shape
    head_width = triple // 3 // num_heads
    q, k, v = qkv.view(batch, tokens, 3, num_heads, head_width).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / head_width**0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)
