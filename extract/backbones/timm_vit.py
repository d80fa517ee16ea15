"""Plain vision transformers of timm: ViT, DeiT, DINOv2 (with or without registers), MAE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from featcache.extract.backbones.base import (
    Backbone,
    LoadedModel,
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

    def norm2(self, block: int) -> nn.Module:
        """``blocks.i.norm2``."""
        return self.module.get_submodule(f"blocks.{block}.norm2")

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
    model = _create(name, weights)
    config = timm.data.resolve_model_data_config(model)
    architecture, _, _ = name.name.partition(".")
    spec = BackboneSpec(
        architecture=f"timm:{architecture}",
        weights_digest=state_digest(model),
        num_layers=len(model.blocks),
        width=model.embed_dim,
        input_size=config["input_size"][-1],
        preprocessing={
            "library": "timm",
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
            model.num_prefix_tokens,
            model.patch_embed.num_patches,
            weights_source(name, weights),
        )
    )


def _create(name: ModelName, weights: Path | None) -> Any:
    architecture, _, tag = name.name.partition(".")
    if architecture not in timm.list_models():
        raise UnknownNameError("timm model", architecture, timm.list_models(), "(timm.list_models() has all)")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UnknownNameError(f"pretrained tag of timm model {architecture}:", tag, tags)
    overlay = dict(name.preprocessing)
    options = {"img_size": overlay["input_size"][-1]} if "input_size" in overlay else {}
    state = None if weights is None else read_state(weights)
    try:
        model = timm.create_model(
            name.name, pretrained=weights is None, num_classes=0, pretrained_cfg_overlay=overlay, **options
        )
        # Before local weights are loaded: that a model is not supported says more than that they do not fit.
        _require_plain_vit(name, model)
        if state is not None:
            _load_state(model, state)
    except BackboneError:
        raise
    except Exception as error:  # timm, torch and the hub client raise many kinds
        raise load_failure(name, weights, error) from error
    return model.eval()


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
