"""Plain vision transformers of timm: ViT, DeiT, DINOv2 (with or without registers), MAE."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.extract.backbones.base import (
    Backbone,
    LoadedModel,
    TapPoint,
    TokenLayout,
    load_failure,
    read_state,
    refuse_if,
    state_digest,
    weights_source,
)
from featcache.extract.models import ModelName
from featcache.store.errors import BackboneError, UnknownNameError
from featcache.store.spec import BackboneSpec

# A checkpoint may hold more than the backbone (a classifier, MAE's decoder), but not more of the backbone itself.
_OF_THE_BACKBONE = frozenset(
    ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "blocks", "norm")
)


class TimmViT(Backbone):
    """A timm `VisionTransformer` with a class token and pre-norm blocks."""

    def tap_point(self, tap: str, block: int) -> TapPoint:
        """``blocks.i`` or a part of it; the hidden activation is what ``mlp.fc2`` takes."""
        module = self.module.get_submodule(f"blocks.{block}")
        if tap == "mlp":
            fc2: Any = module.get_submodule("mlp.fc2")
            return TapPoint(fc2, fc2.in_features, "input")
        return TapPoint(module if tap == "block" else module.get_submodule(tap), self.spec.width)

    @property
    def final_norm(self) -> nn.Module:
        """``norm``."""
        return self.module.get_submodule("norm")

    def output_from_last_tap(self, residual: Tensor, tapped: Tensor) -> Tensor:
        """The rest of the last block, the final norm and the head."""
        model: Any = self.module
        block = model.blocks[-1]
        tokens = residual + block.drop_path2(block.ls2(block.mlp(tapped)))
        output: Tensor = model.forward_head(model.norm(tokens))
        return output


def load_timm(name: ModelName, weights: Path | None) -> TimmViT:
    """Load a timm vision transformer.

    Args:
        name: the resolved name, of family ``timm``.
        weights: local weights; without them the pretrained ones come from the hub.

    Raises:
        UnknownNameError: timm has no such model or tag.
        BackboneError: the weights cannot be had or do not fit, or the model is of a kind that is not supported.
    """
    model, position_embedding = _create(name, weights)
    config = timm.data.resolve_model_data_config(model) | dict(name.preprocessing)
    architecture, _, _ = name.name.partition(".")
    spec = BackboneSpec(
        architecture=f"timm:{architecture}",
        weights_digest=state_digest(model),
        num_layers=len(model.blocks),
        width=model.embed_dim,
        input_size=config["input_size"][-1],
        preprocessing={
            "library": "timm",
            "position_embedding": position_embedding,
            **{field: config[field] for field in ("interpolation", "crop_pct", "crop_mode")},
            **{field: list(config[field]) for field in ("input_size", "mean", "std")},
        },
    )
    transform = timm.data.create_transform(**config, is_training=False)
    return TimmViT(
        LoadedModel(
            spec,
            model,
            transform,
            TokenLayout(True, model.num_prefix_tokens - 1, model.patch_embed.grid_size),
            weights_source(name, weights),
        )
    )


def _create(name: ModelName, weights: Path | None) -> tuple[Any, str]:
    architecture, _, tag = name.name.partition(".")
    if architecture not in timm.list_models():
        raise UnknownNameError("timm model", architecture, timm.list_models(), "(timm.list_models() has all)")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UnknownNameError(f"pretrained tag of timm model {architecture}:", tag, tags)
    state = None if weights is None else dict(read_state(weights))
    try:
        model = timm.create_model(name.name, pretrained=weights is None, num_classes=0)
        # Before local weights are loaded: that a model is not supported says more than that they do not fit.
        _require_plain_vit(name, model)
        stored = model.pos_embed.detach() if state is None else state.get("pos_embed")
        if "input_size" in name.preprocessing:
            model.set_input_size(img_size=name.preprocessing["input_size"][-1])
        resized = _fit_position_embedding(model, stored)
        if state is None:
            model.load_state_dict({"pos_embed": resized}, strict=False)
        else:
            _load_state(model, state | ({} if resized is None else {"pos_embed": resized}))
    except BackboneError:
        raise
    except Exception as error:  # timm, torch and the hub client raise many kinds
        raise load_failure(name, weights, error) from error
    same_size = stored is None or resized is None or stored.shape == resized.shape
    return model.eval(), "as stored" if same_size else "bicubic, antialiased"


def _fit_position_embedding(model: Any, stored: Tensor | None) -> Tensor | None:
    """Resize a position embedding ``[1, N, D]`` to the model's grid, as timm does it, but in float64.

    In float32 the last bits depend on the processor, and with them the weights digest and the key of every cache.
    """
    num_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    grid = model.patch_embed.grid_size
    if stored is None or stored.ndim != 3 or stored.shape[1] == num_prefix + grid[0] * grid[1]:
        return stored
    prefix, patches = stored[:, :num_prefix], stored[:, num_prefix:]
    side = math.isqrt(patches.shape[1])
    # [1, side * side, D] -> [1, D, side, side]
    squares = patches.double().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(squares, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(stored.dtype)], 1)


def _load_state(model: Any, state: Mapping[str, Any]) -> None:
    # timm's own filter converts the names of published checkpoints and resizes position embeddings. Its own loading
    # only logs what is missing, which would leave random weights in place.
    converted = checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True)
    missing, unexpected = model.load_state_dict(converted, strict=False)
    unexpected = [key for key in unexpected if key.split(".")[0] in _OF_THE_BACKBONE]
    if missing or unexpected:
        what, keys = ("lacks", missing) if missing else ("has, and the model has not,", unexpected)
        raise ValueError(f"it {what} {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}")


def _require_plain_vit(name: ModelName, model: Any) -> None:
    reasons = {
        "it is not a plain vision transformer": not isinstance(model, VisionTransformer),
        "it has no class token": getattr(model, "cls_token", None) is None,
        "it pools by attention": getattr(model, "attn_pool", None) is not None,
        "its final norm comes after pooling": isinstance(getattr(model, "norm", None), nn.Identity),
        "its blocks are not pre-norm blocks": not all(
            type(block) is Block for block in getattr(model, "blocks", [])
        ),
    }
    refuse_if(name, reasons)
