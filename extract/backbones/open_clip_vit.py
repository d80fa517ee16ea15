"""Image towers from open_clip: CLIP's own vision transformer (OpenAI, LAION, DFN, MetaCLIP, CLIPA, CoCa and others) and
timm's models in its place (SigLIP, EVA-CLIP, PE and others)."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
from open_clip.convert import convert_state_dict
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from PIL.Image import Image
from timm.data import create_transform
from torch import Tensor, nn

from featcache.extraction.backbones.base import Backbone, Check, LoadedModel, TapPoint, TokenLayout
from featcache.extraction.backbones.checkpoint import OPEN_CLIP_ORDER, read_checkpoint
from featcache.extraction.backbones.hub import hub_source, load_failure
from featcache.extraction.backbones.prenorm import PreNormBlock
from featcache.extraction.backbones.timm_vit import TimmViT, follows_from_tokens, layout_of, why_not_supported
from featcache.extraction.backbones.weights import (
    AS_STORED,
    file_source,
    fit_position_embedding,
    state_digest,
    without_storage,
)
from featcache.extraction.models.names import ModelName
from featcache.extraction.models.preprocessing import (
    ANTIALIASED,
    Preprocessing,
    Settings,
    Size,
    require_patch_multiple,
)
from featcache.store.errors import BackboneError, RequestError, UnknownNameError
from featcache.store.files import JsonObject
from featcache.store.hub import offline_if_unreachable
from featcache.store.spec import BackboneSpec
from featcache.store.text import reason

_PREPROCESSING_FIELDS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
# Only the image tower is wanted, so the rest of the model is made as small as it goes.
_NO_TEXT = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


class OpenClipViT(Backbone):
    """open_clip's own vision transformer."""

    @property
    def sequence_first(self) -> bool:
        """Depends on open_clip's version."""
        return not self.module.get_submodule("transformer").batch_first

    def tap_point(self, tap: str, block: int) -> TapPoint:
        """Return ``transformer.resblocks.i`` or a part of it; the hidden activation is what ``mlp.c_proj`` takes."""
        module = self.module.get_submodule(f"transformer.resblocks.{block}")
        width = self.spec.width
        if tap == "mlp":
            projection: Any = module.get_submodule("mlp.c_proj")
            return TapPoint(projection, projection.in_features, "input")
        if tap == "attn":
            # The attention itself gives a pair in most blocks; what follows it takes the tokens alone.
            follower = "ln_attn" if hasattr(module, "ln_attn") else "ls_1"
            return TapPoint(module.get_submodule(follower), width, "input")
        names = {"norm1": "ln_1", "norm2": "ln_2"}
        return TapPoint(module if tap == "block" else module.get_submodule(names[tap]), width)

    @property
    def final_norm(self) -> nn.Module:
        """``ln_post``, or the transformer itself where that norm comes after pooling."""
        return self.module.get_submodule("transformer" if self._pools_before_norm else "ln_post")

    @property
    def embedding_point(self) -> TapPoint | None:
        """``ln_post`` where it comes after pooling; the tower's output where it pools by attention."""
        tower: Any = self.module
        if tower.attn_pool is not None:
            return TapPoint(tower, tower.output_dim)
        return TapPoint(tower.ln_post, self.spec.width) if self._pools_before_norm else None

    @property
    def projection(self) -> Tensor | None:
        """``proj``, unless it comes after attention pooling, which has a width of its own."""
        tower: Any = self.module
        matrix: Tensor | None = None if tower.attn_pool is not None else tower.proj
        return None if matrix is None else matrix.detach()

    @property
    def _pools_before_norm(self) -> bool:
        tower: Any = self.module
        return bool(tower.attn_pool is not None or tower.final_ln_after_pool)

    def final_tokens(self, tokens: Tensor) -> Tensor:
        """Apply `final_norm` to the tokens, where it is a norm."""
        return tokens if self._pools_before_norm else super().final_tokens(tokens)

    def output_from_final(self, tokens: Tensor) -> Tensor:
        """Apply pooling and projection, and the final norm where it comes after pooling."""
        tower: Any = self.module
        pooled, _ = tower._pool(tokens) if self._pools_before_norm else tower._global_pool(tokens)
        output: Tensor = pooled if tower.proj is None else pooled @ tower.proj
        return output

    def block_checks(self, block: int, entered: Tensor, taps: Mapping[str, Tensor]) -> list[Check]:
        """Return the equations of pre-norm blocks."""
        module: Any = self.module.get_submodule(f"transformer.resblocks.{block}")
        after_attention = nn.Sequential(getattr(module, "ln_attn", nn.Identity()), module.ls_1)
        form = PreNormBlock(
            module.ln_1, module.ln_2, module.mlp, module.mlp.c_proj, after_attention, module.ls_2
        )
        return form.checks(entered, taps)


class OpenClipTimmViT(TimmViT):
    """A timm model as the image tower of open_clip: a trunk, and a head that may project."""

    @property
    def trunk(self) -> Any:
        """``trunk``."""
        return self.module.get_submodule("trunk")

    @cached_property
    def _linear_maps(self) -> list[nn.Linear]:
        """The layers after pooling: the trunk's own classifier, or a map or an MLP in the tower's head."""
        modules = (self.trunk.head, *self.module.get_submodule("head").modules())
        return [module for module in modules if isinstance(module, nn.Linear)]

    @property
    def embedding_point(self) -> TapPoint | None:
        """The input of the projection, or the tower's output where a bias or an MLP makes it more than a matrix."""
        if not self._linear_maps:
            return super().embedding_point
        if self.projection is None:
            return TapPoint(self.module, self._linear_maps[-1].out_features)
        return (
            None
            if follows_from_tokens(self.trunk)
            else TapPoint(self._linear_maps[0], self.spec.width, "input")
        )

    @property
    def projection(self) -> Tensor | None:
        """The weight of the linear map after pooling, transposed, if there is one and it has no bias but zeros."""
        if len(self._linear_maps) != 1:
            return None
        linear = self._linear_maps[0]
        exact = linear.bias is None or not bool(linear.bias.count_nonzero())
        return linear.weight.detach().T if exact else None

    def output_from_final(self, tokens: Tensor) -> Tensor:
        """Apply the trunk's pooling and the tower's head."""
        tower: Any = self.module
        output: Tensor = tower.head(super().output_from_final(tokens))
        return output


GELU = "-gelu"
"""Ending of an architecture's name: GELU is meant, although the weights were trained with QuickGELU. Published scores of CLIP, those of
arXiv 2601.09322 among them, come from such a model."""


def load_open_clip(
    name: ModelName, weights: Path | None, key: str | None, preprocessing: Preprocessing
) -> Backbone:
    """Load the image tower of an open_clip model.

    Args:
        name: the resolved name, of family ``open_clip``, such as ``ViT-L-14-quickgelu/openai`` (or ``ViT-L-14-gelu/openai``,
            see `GELU`).
        weights: local weights of the whole model or of its image tower; without them the tag's come from the hub.
        key: name of one of several sets of weights in that file.
        preprocessing: changes to open_clip's settings.

    Raises:
        UnknownNameError: open_clip has no such architecture or tag.
        RequestError: the model's activation is not the one that the weights were trained with, or the preprocessing does not fit the
            model.
        BackboneError: the weights cannot be had or do not fit, or the tower is of a kind that is not supported.
    """
    architecture, tag = architecture_and_tag(name)
    _require_known(architecture, tag, weights)
    _require_activation(name, architecture, tag)
    try:
        model = _untrained(name)
        if (problem := why_tower_not_supported(model.visual)) is not None:
            raise BackboneError(f"{name.explicit} is not supported: {problem}")
        if preprocessing.input_size not in (None, tuple(model.visual.image_size)):
            model = _with_input_size(name, model.visual, preprocessing.input_size)
        tower = model.visual
        settings = stated_preprocessing(name, model, preprocessing)
        path = weights or download_weights(architecture, tag)
        checkpoint = read_checkpoint(path, OPEN_CLIP_ORDER, key)
        position_embedding = _load_tower(
            model, checkpoint.state, preprocessing.position_embedding or ANTIALIASED
        )
    except (BackboneError, RequestError):
        raise
    except Exception as error:  # open_clip, torch and the hub client raise many kinds
        raise load_failure(name, weights, error, repository_of(architecture, tag)) from error
    tower.eval()
    if hasattr(tower, "output_tokens"):
        tower.output_tokens = False  # CoCa's gives the tokens along with its output
    source = (
        file_source(path, checkpoint.choice)
        if weights is not None
        else hub_source(name, repository_of(architecture, tag), path)
    )
    return _backbone(name, model, {"position_embedding": position_embedding, **settings}, source)


def architecture_and_tag(name: ModelName) -> tuple[str, str]:
    """Return open_clip's names of architecture and tag, without our ending that requests GELU."""
    architecture, _, tag = name.name.partition("/")
    return architecture if architecture in open_clip.list_models() else architecture.removesuffix(GELU), tag


def storageless_model(name: ModelName) -> Any:
    """Make a model of open_clip to inspect its structure, without storage for its weights where possible."""
    try:
        with without_storage():
            return _untrained(name, "meta")
    except Exception:  # older versions of timm read values while they build
        return _untrained(name)


def _untrained(name: ModelName, device: str = "cpu", size: Size | None = None) -> Any:
    """Make a model of open_clip with random weights, its text tower replaced by a minimal one."""
    architecture, tag = architecture_and_tag(name)
    config = open_clip.get_pretrained_cfg(architecture, tag)
    rest = {"text_cfg": dict(_NO_TEXT)}
    if "multimodal_cfg" in open_clip.get_model_config(architecture):
        rest["multimodal_cfg"] = dict(_NO_TEXT)
    with without_warnings():  # that its weights are random
        return open_clip.create_model(
            architecture,
            device=device,
            pretrained_text=False,
            force_image_size=size,
            # The tag's preprocessing goes with local weights of that tag too; the size is the architecture's.
            force_preprocess_cfg={f: config[f] for f in _PREPROCESSING_FIELDS if f in config and f != "size"},
            **rest,
        )


@contextmanager
def without_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def layout_of_tower(tower: Any) -> tuple[int, int, TokenLayout]:
    """Number of layers, width and token layout of an image tower."""
    if isinstance(tower, TimmModel):
        return len(tower.trunk.blocks), tower.trunk.embed_dim, layout_of(tower.trunk)
    return len(tower.transformer.resblocks), tower.transformer.width, TokenLayout(True, 0, tower.grid_size)


def _with_input_size(name: ModelName, tower: Any, size: Size) -> Any:
    """Make the model again for images of another size.

    Raises:
        RequestError: the size is no multiple of the patch.
        BackboneError: the tower has one size only.
    """
    _, _, layout = layout_of_tower(tower)
    patch = (tower.image_size[0] // layout.grid[0], tower.image_size[1] // layout.grid[1])
    require_patch_multiple(name.explicit, size, patch)
    only = f"{name.explicit} takes images of {tower.image_size[0]} x {tower.image_size[1]} pixels only"
    if any("relative_position" in key for key in tower.state_dict()):
        raise BackboneError(f"{only}: it has biases by relative position; leave --input-size out")
    try:
        model = _untrained(name, size=size)
        _, _, layout = layout_of_tower(model.visual)
    except Exception as error:  # towers of other kinds raise what they like
        raise BackboneError(f"{only} ({reason(error)}); leave --input-size out") from error
    if layout.grid != (size[0] // patch[0], size[1] // patch[1]):
        raise BackboneError(f"{only}; leave --input-size out")
    return model


def stated_preprocessing(name: ModelName, model: Any, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the preprocessing as the spec states it, in open_clip's terms and with ``crop_pct``, which open_clip has not.

    Raises:
        RequestError: the changes that are asked for do not go together with open_clip's own settings.
    """
    config = open_clip.get_model_preprocess_cfg(model)
    own = Settings.of_open_clip(config, tuple(model.visual.image_size))
    stated = {field: _plain(config[field]) for field in _PREPROCESSING_FIELDS if field in config}
    return stated | own.changed(preprocessing, name.explicit).for_open_clip(own)


def _transform(size: Size, stated: Mapping[str, Any]) -> Callable[[Image], Tensor]:
    """Return the preprocessing that the spec states: open_clip's own where it has it, else the same steps with more settings."""
    is_square = size[0] == size[1]
    settings = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    # For other sizes open_clip's own resize ignores the interpolation, and it knows only two of them.
    if "crop_pct" not in stated and is_square and stated["interpolation"] in ("bicubic", "bilinear"):
        own: Callable[[Image], Tensor] = open_clip.image_transform(
            size, is_train=False, **{field: stated[field] for field in settings}
        )
        return own
    timms = Settings.of_open_clip(stated, size)
    steps: Callable[[Image], Tensor] = create_transform(
        **replace(timms, crop_pct=stated.get("crop_pct", 1.0)).for_timm(), is_training=False
    )
    return steps


def _backbone(name: ModelName, model: Any, stated: Mapping[str, Any], source: JsonObject) -> Backbone:
    tower = model.visual
    num_layers, width, layout = layout_of_tower(tower)
    spec = BackboneSpec(
        architecture=f"open_clip:{name.name.partition('/')[0]}",
        weights_digest=state_digest(tower),
        num_layers=num_layers,
        width=width,
        input_size=tower.image_size[1],
        preprocessing={"library": "open_clip", **stated},
    )
    kind = OpenClipTimmViT if isinstance(tower, TimmModel) else OpenClipViT
    transform = _transform(tuple(tower.image_size), stated)
    return kind(LoadedModel(spec, tower, transform, layout, source))


def _require_known(architecture: str, tag: str, weights: Path | None) -> None:
    if architecture not in open_clip.list_models():
        raise UnknownNameError("open_clip architecture", architecture, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags and weights is None:
        raise UnknownNameError(f"pretrained tag of open_clip architecture {architecture}:", tag, tags)


def _require_activation(name: ModelName, architecture: str, tag: str) -> None:
    """Refuse weights that were trained with QuickGELU under a model that runs GELU, unless the name says that it is meant."""
    trained = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
    other = trained and not open_clip.get_model_config(architecture).get("quick_gelu", False)
    asked = not name.name.startswith(f"{architecture}/")
    if asked and not other:
        raise RequestError(
            f"{name.explicit}: {GELU} is for weights that were trained with QuickGELU; leave it out"
        )
    if other and not asked:
        raise RequestError(
            f"{name.explicit}: these weights were trained with QuickGELU and this model runs GELU, which gives other "
            f"features; write open_clip:{architecture}-quickgelu/{tag}, or open_clip:{architecture}{GELU}/{tag} to compare with "
            "runs that had it so"
        )


def why_tower_not_supported(tower: Any) -> str | None:
    """Return why the taps cannot read an image tower of open_clip, or None if they can."""
    if isinstance(tower, TimmModel):
        return why_not_supported(tower.trunk)
    if not isinstance(tower, VisionTransformer):
        return f"its image tower ({type(tower).__name__}) is not a vision transformer"
    if tower.attn_pool is not None and tower.attn_pool_contrastive is not None:
        return f"its {tower.attn_pool_type} attention pooling is marked as unfinished in open_clip"
    return None


def repository_of(architecture: str, tag: str) -> str:
    """Return ``owner/name`` of a tag's weights; open_clip writes a file's name, or nothing, behind it."""
    return str(open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "")).rpartition("/")[0]


def download_weights(architecture: str, tag: str) -> Path:
    with offline_if_unreachable():
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(architecture, tag)))


def _load_tower(model: Any, state: Mapping[str, Tensor], method: str) -> str:
    """Load the image tower from the weights of the whole model, or of the tower alone.

    Args:
        model: the model.
        state: the weights.
        method: how a position embedding of another size is resized.

    Returns:
        What happened to the position embedding: `AS_STORED` or `method`.

    Raises:
        ValueError, RuntimeError: the weights do not fit.
    """
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    state = convert_state_dict(model, bare)
    tower = model.visual
    own = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    own = own or dict(state)
    changed = _fit_positions(tower, own, method)
    tower.load_state_dict(own)
    return method if changed else AS_STORED


def _fit_positions(tower: Any, state: dict[str, Tensor], method: str) -> bool:
    """Resize the position embedding in a tower's weights to the tower's grid; return whether there was anything to do."""
    if isinstance(tower, TimmModel):
        trunk, name = tower.trunk, "trunk.pos_embed"
        stored = state.get(name)
        if not isinstance(stored, Tensor) or stored.ndim != 3 or getattr(trunk, "pos_embed", None) is None:
            return False
        num_prefix = 0 if getattr(trunk, "no_embed_class", False) else trunk.num_prefix_tokens
        state[name] = fit_position_embedding(stored, num_prefix, layout_of(trunk).grid, method)
        return state[name] is not stored
    name = "positional_embedding"
    stored = state.get(name)
    if not isinstance(stored, Tensor) or stored.ndim != 2 or not isinstance(tower, VisionTransformer):
        return False
    state[name] = fit_position_embedding(stored[None], 1, tower.grid_size, method)[0]
    return state[name].shape != stored.shape or not state[name].equal(stored)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
