"""Vision transformers of timm: ViT, DeiT, DINO, DINOv2 and v3, MAE, SigLIP, BEiT, EVA, PE and their kin."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from featcache.extraction.backbones.base import (
    Backbone,
    Check,
    LoadedModel,
    TapPoint,
    TokenLayout,
    missing_tap_error,
)
from featcache.extraction.backbones.checkpoint import Checkpoint
from featcache.extraction.backbones.hub import load_failure
from featcache.extraction.backbones.prenorm import PreNormBlock
from featcache.extraction.backbones.timm_weights import (
    fit_input,
    hub_repository,
    load_file,
    resize_model,
    storageless_model,
    weights_source,
)
from featcache.extraction.backbones.weights import state_digest
from featcache.extraction.models.names import ModelName
from featcache.extraction.models.preprocessing import Preprocessing, Settings
from featcache.extraction.sources.pixels import RGB_CHANNELS
from featcache.store.errors import BackboneError, RequestError, UnknownNameError
from featcache.store.hub import offline_if_unreachable
from featcache.store.inventory import TAPS
from featcache.store.spec import BackboneSpec

CLASSES = (VisionTransformer, Eva, Beit, VisionTransformerRelPos)
"""The models whose tokens are ``[B, N, D]`` from first to last, patches row by row."""

# The taps of timm's blocks by the name of their class; a block that is not here was never looked at.
_POST_NORM = ("block", "attn", "mlp")
_TAPS_OF_BLOCK: Mapping[str, tuple[str, ...]] = {
    "Block": TAPS,
    "EvaBlock": TAPS,
    "RelPosBlock": TAPS,
    "ResPostBlock": _POST_NORM,
    "ResPostRelPosBlock": _POST_NORM,
    "EvaBlockPostNorm": _POST_NORM,
    # Attention and MLP side by side: no norm lies between them.
    "ParallelScalingBlock": ("block",),
    "DiffParallelScalingBlock": ("block",),
    "ParallelThingsBlock": ("block",),
}


class TimmViT(Backbone):
    """A vision transformer of timm, one of `CLASSES`."""

    @property
    def trunk(self) -> Any:
        """timm's model."""
        return self.module

    def tap_point(self, tap: str, block: int) -> TapPoint:
        """Return ``blocks.i`` or a part of it; the hidden activation is what the last map of ``mlp`` takes."""
        module = self.trunk.blocks[block]
        taps = _TAPS_OF_BLOCK[type(module).__name__]
        if tap not in taps:
            form = "parallel" if taps == ("block",) else "post-norm"
            raise missing_tap_error(self.spec.architecture, tap, taps, f"{form} blocks")
        if tap == "mlp":
            projection = _mlp_projection(module)
            return TapPoint(projection, projection.in_features, "input")
        return TapPoint(module if tap == "block" else module.get_submodule(tap), self.spec.width)

    @property
    def final_norm(self) -> nn.Module:
        """``norm``, an Identity in models that pool first."""
        module: nn.Module = self.trunk.norm
        return module

    @property
    def embedding_point(self) -> TapPoint | None:
        """The input of ``head``: the output of ``attn_pool`` or ``fc_norm``."""
        return (
            None if follows_from_tokens(self.trunk) else TapPoint(self.trunk.head, self.spec.width, "input")
        )

    def output_from_final(self, tokens: Tensor) -> Tensor:
        """Apply pooling, ``fc_norm`` and head."""
        output: Tensor = self.trunk.forward_head(tokens)
        return output

    def block_checks(self, block: int, entered: Tensor, taps: Mapping[str, Tensor]) -> list[Check]:
        """Return the equations of pre-norm blocks."""
        module = self.trunk.blocks[block]
        if _TAPS_OF_BLOCK[type(module).__name__] != TAPS:
            return []
        form = PreNormBlock(
            module.norm1,
            module.norm2,
            module.mlp,
            _mlp_projection(module),
            _scale(module, 1),
            _scale(module, 2),
        )
        return form.checks(entered, taps)


class TimmDistilled(TimmViT):
    """A DeiT with a distillation token, the one register; its embedding is the mean of class and distillation token."""

    @property
    def embedding_point(self) -> TapPoint:
        """The model's output."""
        return TapPoint(self.module, self.spec.width)


def follows_from_tokens(model: Any) -> bool:
    """Return whether a timm model pools by picking the class token or averaging the patches, and does nothing after that."""
    return (
        getattr(model, "attn_pool", None) is None
        and isinstance(getattr(model, "fc_norm", None), nn.Identity)
        and not getattr(model, "pool_include_prefix", False)
        and model.global_pool in ("token", "avg", "")
    )


def _mlp_projection(block: Any) -> Any:
    """Return the last map of a block's MLP, which only ViTamin calls something else."""
    return block.mlp.fc2 if hasattr(block.mlp, "fc2") else block.mlp.w2


def _scale(block: Any, number: int) -> Callable[[Tensor], Tensor]:
    """Return the LayerScale of a block: a module in some of timm's blocks and a parameter, or None, in others."""
    module = getattr(block, f"ls{number}", None)
    if module is not None:
        return lambda tokens: module(tokens)
    gamma = getattr(block, f"gamma_{number}", None)
    return lambda tokens: tokens if gamma is None else tokens * gamma


def load_timm(
    name: ModelName, weights: Path | None, key: str | None, preprocessing: Preprocessing
) -> TimmViT:
    """Load a timm vision transformer.

    Args:
        name: the resolved name, of family ``timm``.
        weights: local weights; without them the pretrained ones come from the hub.
        key: name of one of several sets of weights in that file.
        preprocessing: changes to timm's settings.

    Raises:
        UnknownNameError: timm has no such model or tag.
        RequestError: the model's activation is not the one that the weights were trained with, or the preprocessing does not fit the
            model.
        BackboneError: the weights cannot be had or do not fit, or the model is of a kind that is not supported.
    """
    _require_known(name)
    _require_activation(name, weights)
    model, position_embedding, checkpoint = _create(name, weights, key, preprocessing)
    config = timm_config(name, model, preprocessing)
    _require_normalization(name, model, config)
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
    return backbone_of(
        LoadedModel(
            spec, model, transform, layout_of(model), weights_source(name, model, weights, checkpoint)
        )
    )


def timm_config(name: ModelName, model: Any, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the settings of a model's preprocessing in timm's terms.

    Raises:
        RequestError: the changes that are asked for do not go together with timm's own settings.
    """
    config: dict[str, Any] = timm.data.resolve_model_data_config(model)
    changed = Settings.of_timm(config).changed(preprocessing, name.explicit)
    return config | changed.for_timm()


def _require_normalization(name: ModelName, model: Any, config: Mapping[str, Any]) -> None:
    """Refuse a mean or deviation that has not a value for each channel of the weights.

    Raises:
        RequestError: it has not.
    """
    projection = model.patch_embed.proj
    channels = projection.in_channels if isinstance(projection, nn.Conv2d) else RGB_CHANNELS
    for field in ("mean", "std"):
        if len(config[field]) != channels:
            given = "" if channels == RGB_CHANNELS else f"--channels {channels} and "
            raise RequestError(
                f"the weights of {name.explicit} take images of {channels} channels; give {given}--mean and --std of {channels} "
                "values each, for pixels from 0 to 1, as in their training"
            )


def backbone_of(loaded: LoadedModel) -> TimmViT:
    """Return the backbone of a timm model, which may have a distillation token."""
    return TimmDistilled(loaded) if hasattr(loaded.module, "dist_token") else TimmViT(loaded)


def layout_of(model: Any) -> TokenLayout:
    """Return the order of the tokens of a timm vision transformer."""
    has_class_token = getattr(model, "cls_token", None) is not None
    grid = tuple(model.patch_embed.grid_size)
    return TokenLayout(has_class_token, model.num_prefix_tokens - int(has_class_token), grid)


def why_not_supported(model: Any) -> str | None:
    """Return why the taps cannot read a timm model, or None if they can."""
    kind = type(model).__name__
    if "naflex" in kind.lower():
        return "it takes images of any size and shape (NaFlex), and a cache holds one number of patches"
    if not isinstance(model, CLASSES):
        return f"{kind} is not a plain vision transformer, with the same tokens in all layers"
    blocks = sorted({type(block).__name__ for block in model.blocks} - _TAPS_OF_BLOCK.keys())
    if blocks:
        return f"its blocks ({', '.join(blocks)}) are not known"
    return None


def _require_known(name: ModelName) -> None:
    architecture, _, tag = name.name.partition(".")
    if architecture not in timm.list_models():
        raise UnknownNameError("timm model", architecture, timm.list_models(), "(timm.list_models() has all)")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UnknownNameError(f"pretrained tag of timm model {architecture}:", tag, tags)


def _require_activation(name: ModelName, weights: Path | None) -> None:
    """Refuse weights that were trained with QuickGELU under a model that runs GELU: other features, and no error."""
    architecture, _, tag = name.name.partition(".")
    if weights is not None and not tag:
        return  # nothing is said of how they were trained
    config = timm.get_pretrained_cfg(name.name)
    # timm says so in words, and has the right model under another name.
    native = any("quickgelu" in note.lower() for note in (config.notes or ()))
    if native and "quickgelu" not in architecture:
        right = architecture.replace("_clip_", "_clip_quickgelu_")
        raise RequestError(
            f"{name.explicit}: these weights were trained with QuickGELU and this model runs GELU, which gives other "
            f"features; write timm:{right}.{config.tag}"
        )


def _create(
    name: ModelName, weights: Path | None, key: str | None, preprocessing: Preprocessing
) -> tuple[Any, str, Checkpoint | None]:
    """Return the model with its weights, the origin of its position embedding, and the set taken from a local file."""
    checkpoint = None
    try:
        model = storageless_model(name) if weights is None else timm.create_model(name.name, num_classes=0)
        # Before any weights are loaded: that a model is not supported says more than that they do not fit.
        if (problem := why_not_supported(model)) is not None:
            raise BackboneError(f"{name.explicit} is not supported: {problem}")
        timm_config(name, model, preprocessing)
        if weights is None:
            if preprocessing.input_size is not None:
                resize_model(name, model, preprocessing.input_size)  # before gigabytes are downloaded
            with offline_if_unreachable():
                model = timm.create_model(name.name, pretrained=True, num_classes=0)
            position_embedding = fit_input(name, model, preprocessing)
        else:
            position_embedding, checkpoint = load_file(name, model, weights, key, preprocessing)
    except (BackboneError, RequestError):
        raise
    except Exception as error:  # timm, torch and the hub client raise many kinds
        raise load_failure(name, weights, error, hub_repository(name)) from error
    return model.eval(), position_embedding, checkpoint
