"""Names of tensors in the forms that checkpoints of timm models have, turned into timm's own names.

Training frameworks put prefixes before the names, self-supervised training keeps a teacher beside a student, sharded training divides
the blocks into chunks, and Hugging Face transformers has names of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MARKER = "blocks.0.norm1.weight"
"""A tensor of every backbone; the text before its name is the prefix of the backbone's names."""
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")
"""Prefixes of `torch.compile` and of data-parallel training, which timm strips in this order too."""
_OPEN_CLIP = "visual.trunk."
"""Prefix of the image tower in checkpoints of open_clip, which timm's own filter reads."""
_CHUNKED = re.compile(r"(^|\.)blocks\.\d+\.(\d+\.)")
_HUGGING_FACE = "embeddings.patch_embeddings.projection.weight"
"""A tensor of ViT, MAE and DINOv2 in Hugging Face transformers, and of BEiT, whose blocks are then not understood."""
_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_IN_BLOCKS = {
    # ViT and MAE; DINOv2 has norm1 and norm2, as timm.
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
}
# Version 5 of transformers has shorter names than those before.
_HF_BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")
_HF_PROJECTION = re.compile(r"attention\.(?:attention\.)?(query|key|value|[qkv]_proj)")
_PROJECTIONS = ("q", "k", "v")


@dataclass(frozen=True)
class NamedState:
    """Tensors under timm's names."""

    state: dict[str, Tensor]
    prefix: str = ""
    """Prefix that was stripped, such as ``teacher.backbone.``; empty if the names have none."""
    other_prefixes: tuple[str, ...] = ()
    """Prefixes of the other backbones in the same set, which are not taken."""


def to_timm_names(state: Mapping[str, Tensor]) -> NamedState:
    """Give the tensors of a checkpoint the names that timm's loading knows.

    Of a teacher and a student the teacher is taken, which is what the authors of DINO and DINOv2 evaluate. Names that are not understood
    are left as they are, so that the error of the caller can list them. No tensor is resized.

    Args:
        state: tensors by name.

    Raises:
        ValueError: several backbones are in the set, and none of them is a teacher's.
    """
    cleaned = _transformers_names(_merge_chunks(_strip_wrappers(state)))
    prefixes = [prefix for prefix in find_prefixes(cleaned, MARKER) if prefix != _OPEN_CLIP]
    if MARKER in cleaned or not prefixes:
        return NamedState(cleaned, "", tuple(prefixes))
    candidates = [prefix for prefix in prefixes if "student" not in prefix] or prefixes
    if len(candidates) > 1:
        candidates = [prefix for prefix in candidates if "teacher" in prefix] or candidates
    if len(candidates) > 1:
        listed = ", ".join(repr(prefix) for prefix in prefixes)
        raise ValueError(
            f"it holds several backbones, whose names begin with {listed}; choose one with --weights-key {candidates[0]}"
        )
    (prefix,) = candidates
    taken = {name.removeprefix(prefix): tensor for name, tensor in cleaned.items() if name.startswith(prefix)}
    return NamedState(taken, prefix, tuple(other for other in prefixes if other != prefix))


def find_prefixes(names: Mapping[str, object], marker: str) -> list[str]:
    """Return the prefixes under which a state dict has the tensor `marker`, such as ``teacher.backbone.``; at most three, a student last."""
    prefixes = (name.removesuffix(marker) for name in names if name.endswith(f".{marker}"))
    return sorted(prefixes, key=lambda prefix: ("student" in prefix, prefix))[:3]


def _strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cleaned = {}
    for name, tensor in state.items():
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        cleaned[name] = tensor
    return cleaned


def _merge_chunks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the ``blocks.CHUNK.BLOCK.`` of sharded DINOv2 training into ``blocks.BLOCK.``: blocks are counted through all chunks."""
    merged = {_CHUNKED.sub(r"\1blocks.\2", name): tensor for name, tensor in state.items()}
    # Fewer names mean that two tensors would share one, so the numbers are no chunks.
    return merged if len(merged) == len(state) else state


def _transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names that ViT, MAE and DINOv2 have in Hugging Face transformers; others are returned as they are."""
    patches = next((name for name in state if name.endswith(_HUGGING_FACE)), None)
    if patches is None:
        return state
    prefix = patches.removesuffix(_HUGGING_FACE)
    translated: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in state.items():
        name = full_name.removeprefix(prefix)
        block = _HF_BLOCK.fullmatch(name)
        if block is None:
            translated[_EMBEDDINGS.get(name, name)] = tensor
            continue
        module, _, parameter = block[2].rpartition(".")
        projection = _HF_PROJECTION.fullmatch(module)
        if projection is not None:
            projections.setdefault(f"blocks.{block[1]}.attn.qkv.{parameter}", {})[projection[1][0]] = tensor
        elif block[2] in _IN_BLOCKS:
            translated[f"blocks.{block[1]}.{_IN_BLOCKS[block[2]]}"] = tensor
        else:
            translated[f"blocks.{block[1]}.{_IN_BLOCKS.get(module, module)}.{parameter}"] = tensor
    for name, parts in projections.items():
        if parts.keys() == {*_PROJECTIONS}:
            translated[name] = torch.cat([parts[kind] for kind in _PROJECTIONS])
    return _without_register_positions(translated)


def _without_register_positions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the class token's position to it where there are registers: timm's DINOv2 with registers embeds the patches alone."""
    positions = state.get("pos_embed")
    if "reg_token" in state and positions is not None:
        state["cls_token"] = state["cls_token"] + positions[:, :1]
        state["pos_embed"] = positions[:, 1:]
    return state
