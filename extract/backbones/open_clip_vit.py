"""CLIP's vision transformers from open_clip: OpenAI's, OpenCLIP's, DFN, MetaCLIP and others of the same tower."""

from pathlib import Path
from typing import Any

import open_clip
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from featcache.extract.backbones.base import (
    Backbone,
    LoadedModel,
    TapPoint,
    TokenLayout,
    load_failure,
    refuse_if,
    state_digest,
    weights_source,
)
from featcache.extract.models import ModelName
from featcache.store.errors import UnknownNameError
from featcache.store.spec import BackboneSpec

_PREPROCESSING_FIELDS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


class OpenClipViT(Backbone):
    """The image tower of an open_clip model."""

    @property
    def sequence_first(self) -> bool:
        """Depends on open_clip's version."""
        return not self.module.get_submodule("transformer").batch_first

    def tap_point(self, tap: str, block: int) -> TapPoint:
        """``transformer.resblocks.i`` or a part of it; the hidden activation is what ``mlp.c_proj`` takes."""
        module = self.module.get_submodule(f"transformer.resblocks.{block}")
        if tap == "mlp":
            projection: Any = module.get_submodule("mlp.c_proj")
            return TapPoint(projection, projection.in_features, "input")
        names = {"norm1": "ln_1", "norm2": "ln_2", "attn": "attn"}
        return TapPoint(module if tap == "block" else module.get_submodule(names[tap]), self.spec.width)

    @property
    def projection(self) -> Tensor | None:
        """``proj``."""
        return getattr(self.module, "proj", None)

    @property
    def final_norm(self) -> nn.Module:
        """``ln_post``."""
        return self.module.get_submodule("ln_post")

    def output_from_last_tap(self, residual: Tensor, tapped: Tensor) -> Tensor:
        """The rest of the last block, the final norm, pooling and projection."""
        tower: Any = self.module
        block = tower.transformer.resblocks[-1]
        tokens = residual + block.ls_2(block.mlp(tapped))
        if self.sequence_first:
            tokens = tokens.transpose(0, 1)
        pooled, _ = tower._pool(tokens)
        output: Tensor = pooled if tower.proj is None else pooled @ tower.proj
        return output


def load_open_clip(name: ModelName, weights: Path | None) -> OpenClipViT:
    """Load the image tower of an open_clip model.

    Args:
        name: the resolved name, of family ``open_clip``, such as ``ViT-L-14-quickgelu/openai``.
        weights: local weights of the whole model; without them the tag's come from the hub.

    Raises:
        UnknownNameError: open_clip has no such architecture or tag.
        BackboneError: the weights cannot be had or do not fit, or the tower is of a kind that is not supported.
    """
    architecture, _, tag = name.name.partition("/")
    model = _create(name, architecture, tag, weights)
    tower = model.visual
    _require_plain_vit(name, tower)
    config = open_clip.get_model_preprocess_cfg(model)
    preprocessing = {field: _plain(config[field]) for field in _PREPROCESSING_FIELDS if field in config}
    spec = BackboneSpec(
        architecture=f"open_clip:{architecture}",
        weights_digest=state_digest(tower),
        num_layers=len(tower.transformer.resblocks),
        width=tower.transformer.width,
        input_size=tower.image_size[0],
        preprocessing={"library": "open_clip", "position_embedding": "as stored", **preprocessing},
    )
    transform = open_clip.image_transform(
        tower.image_size,
        is_train=False,
        **{
            field: preprocessing[field]
            for field in ("mean", "std", "interpolation", "resize_mode", "fill_color")
        },
    )
    layout = TokenLayout(True, 0, tower.grid_size)
    return OpenClipViT(LoadedModel(spec, tower, transform, layout, weights_source(name, weights)))


def _create(name: ModelName, architecture: str, tag: str, weights: Path | None) -> Any:
    if architecture not in open_clip.list_models():
        raise UnknownNameError("open_clip architecture", architecture, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags and weights is None:
        raise UnknownNameError(f"pretrained tag of open_clip architecture {architecture}:", tag, tags)
    try:
        # The tag's preprocessing goes with local weights of that tag too.
        config = open_clip.get_pretrained_cfg(architecture, tag) if weights is not None else {}
        model = open_clip.create_model(
            architecture,
            pretrained=tag if weights is None else str(weights),
            force_preprocess_cfg={field: config[field] for field in _PREPROCESSING_FIELDS if field in config},
        )
    except Exception as error:  # open_clip, torch and the hub client raise many kinds
        raise load_failure(name, weights, error) from error
    return model.eval()


def _require_plain_vit(name: ModelName, tower: Any) -> None:
    reasons = {
        "its image tower is not open_clip's vision transformer": not isinstance(tower, VisionTransformer),
        "it pools by attention": getattr(tower, "attn_pool", None) is not None,
        "its final norm comes after pooling": getattr(tower, "final_ln_after_pool", False),
    }
    if not any(reasons.values()):
        blocks = tower.transformer.resblocks
        reasons["its blocks are not pre-norm blocks"] = not all(
            type(b) is ResidualAttentionBlock for b in blocks
        )
    refuse_if(name, reasons)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
