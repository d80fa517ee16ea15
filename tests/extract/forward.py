"""The forward passes of timm's and open_clip's vision transformers as loops over their parts.

oracle.py writes two of them down to the last multiplication. Here the parts (norms, attention, linear maps) are the
library's, and what is written down is how they are put together: the order of the tokens, what is added to what, where
scales and norms stand, how it is pooled. Nothing here knows of taps.
"""

from typing import Any

import torch
from torch import Tensor

from .oracle import ForwardPass, Recorder


@torch.inference_mode()
def timm_forward(model: Any, images: Tensor) -> ForwardPass:
    """A timm `VisionTransformer`, `Eva`, `Beit` or `VisionTransformerRelPos`, with pre-norm blocks or others."""
    tokens, arguments = _enter(model, images)
    taps = Recorder()
    for index, block in enumerate(model.blocks):
        tokens = _block(block, tokens, arguments(index), taps)
    final = model.norm(tokens)
    return ForwardPass(taps.seen, final, _pool(model, final))


@torch.inference_mode()
def open_clip_forward(tower: Any, images: Tensor) -> ForwardPass:
    """open_clip's own tower with any of its blocks and poolings."""
    tokens = tower.conv1(images).flatten(2).transpose(1, 2)
    class_token = tower.class_embedding.expand(len(images), 1, -1)
    tokens = tower.ln_pre(torch.cat([class_token, tokens], 1) + tower.positional_embedding)
    taps = Recorder()
    for block in tower.transformer.resblocks:
        normed = taps.norm1(block.ln_1(tokens))
        mixed = (
            block.attn(normed, normed, normed)[0]
            if hasattr(block.attn, "batch_first")
            else block.attn(normed)
        )
        mixed = block.ln_attn(taps.attn(mixed)) if hasattr(block, "ln_attn") else taps.attn(mixed)
        tokens = tokens + block.ls_1(mixed)
        hidden = taps.mlp(block.mlp[:-1](taps.norm2(block.ln_2(tokens))))
        tokens = taps.block(tokens + block.ls_2(block.mlp[-1](hidden)))
    if tower.attn_pool is not None:  # CoCa
        final, pooled = tokens, tower.ln_post(tower.attn_pool(tokens))[:, 0]
    elif tower.final_ln_after_pool:  # CLIPA
        final, pooled = tokens, tower.ln_post(tokens[:, 1:].mean(1))
    else:
        final = tower.ln_post(tokens)
        pooled = final[:, 0]
    return ForwardPass(taps.seen, final, pooled @ tower.proj)


def _enter(model: Any, images: Tensor) -> tuple[Tensor, Any]:
    """The tokens that enter the first block, and the further arguments of block i."""
    batch = len(images)
    patches = model.patch_embed(images)
    kind = type(model).__name__
    if kind == "Eva":
        tokens, rope = model._pos_embed(patches)
        tokens = model.norm_pre(tokens)
        mixed = model.rope_mixed  # one embedding a block
        return tokens, lambda index: {"rope": rope[index] if mixed else rope}
    if kind in ("Beit", "VisionTransformerRelPos"):
        if model.cls_token is not None:
            patches = torch.cat([model.cls_token.expand(batch, -1, -1), patches], 1)
        if getattr(model, "pos_embed", None) is not None:
            patches = patches + model.pos_embed
        name = {"Beit": ("rel_pos_bias", "shared_rel_pos_bias")}.get(
            kind, ("shared_rel_pos", "shared_rel_pos")
        )
        shared = getattr(model, name[0])
        bias = None if shared is None else shared() if kind == "Beit" else shared.get_bias()
        return patches, lambda index: {name[1]: bias}
    return model.norm_pre(model._pos_embed(patches)), lambda index: {}


def _block(block: Any, tokens: Tensor, arguments: dict[str, Any], taps: Recorder) -> Tensor:
    kind = type(block).__name__
    if kind.startswith(("Parallel", "DiffParallel")):
        return taps.block(block(tokens))
    if kind in ("ResPostBlock", "ResPostRelPosBlock", "EvaBlockPostNorm"):
        tokens = tokens + block.norm1(taps.attn(block.attn(tokens, **arguments)))
        return taps.block(tokens + block.norm2(_mlp(block.mlp, tokens, taps)))
    mixed = taps.attn(block.attn(taps.norm1(block.norm1(tokens)), **arguments))
    tokens = tokens + _scale(block, 1) * mixed
    return taps.block(tokens + _scale(block, 2) * _mlp(block.mlp, taps.norm2(block.norm2(tokens)), taps))


def _scale(block: Any, number: int) -> Any:
    gamma = getattr(getattr(block, f"ls{number}", None), "gamma", None)
    gamma = getattr(block, f"gamma_{number}", None) if gamma is None else gamma
    return 1 if gamma is None else gamma


def _mlp(mlp: Any, tokens: Tensor, taps: Recorder) -> Tensor:
    kind = type(mlp).__name__
    if kind == "SwiGLU":
        hidden = mlp.norm(mlp.act(mlp.fc1_g(tokens)) * mlp.fc1_x(tokens))
    elif kind == "GluMlp":
        gate, values = mlp.fc1(tokens).chunk(2, -1)
        hidden = mlp.norm(mlp.act(gate) * values)
    elif kind == "GeGluMlp":
        normed = mlp.norm(tokens)
        return mlp.w2(taps.mlp(mlp.act(mlp.w0(normed)) * mlp.w1(normed)))
    else:
        hidden = mlp.norm(mlp.act(mlp.fc1(tokens)))
    return mlp.fc2(taps.mlp(hidden))


def _pool(model: Any, final: Tensor) -> Tensor:
    """What timm's models without a classifier give."""
    prefix = model.num_prefix_tokens
    if hasattr(model, "dist_token"):
        return (final[:, 0] + final[:, 1]) / 2
    if getattr(model, "attn_pool", None) is not None:
        # Eva shows all tokens to it, VisionTransformer the patches alone.
        pooled = model.attn_pool(final if type(model).__name__ == "Eva" else final[:, prefix:])
    else:
        patches = final[:, prefix:]
        pooled = {"token": final[:, 0], "avg": patches.mean(1), "max": patches.amax(1)}[model.global_pool]
    return model.head(model.fc_norm(pooled))
