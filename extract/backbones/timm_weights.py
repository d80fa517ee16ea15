"""Weights of timm's models: from the Hub by timm itself, from local files by stricter rules, and where they came from."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
from timm.models import vision_transformer
from torch import Tensor, nn

from featcache.extraction.backbones.checkpoint import SEPARATOR, TIMM_ORDER, Checkpoint, read_checkpoint
from featcache.extraction.backbones.checkpoint_names import to_timm_names
from featcache.extraction.backbones.hub import cached_file, hub_source
from featcache.extraction.backbones.weights import (
    AS_STORED,
    file_source,
    fit_position_embedding,
    without_storage,
)
from featcache.extraction.models.names import ModelName
from featcache.extraction.models.preprocessing import (
    ANTIALIASED,
    Preprocessing,
    Size,
    require_patch_multiple,
    size_text,
)
from featcache.store.errors import BackboneError
from featcache.store.files import JsonObject
from featcache.store.text import reason

# A checkpoint may hold more than the backbone (a classifier, another pooling, MAE's decoder), but not more of the backbone itself.
_OF_THE_BACKBONE = frozenset(
    [
        "patch_embed",
        "cls_token",
        "dist_token",
        "reg_token",
        "pos_embed",
        "rel_pos_bias",
        "norm_pre",
        "blocks",
        "norm",
    ]
)
# The files of a repository in timm's own order.
_HUB_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
# Position embeddings under the names of other libraries; a full CLIP's own ``positional_embedding`` is the text tower's.
_FOREIGN_POSITIONS = ("visual.trunk.pos_embed", "visual.pos_embed", "visual.positional_embedding")


def fit_input(name: ModelName, model: Any, preprocessing: Preprocessing) -> str:
    """Set a model that timm has loaded from the Hub to the input size that is asked for.

    Returns:
        What happened to the position embedding: `AS_STORED` or one of `POSITION_METHODS`.

    Raises:
        BackboneError: timm had to resize the published position embedding itself, in float32, or the model has one size only.
    """
    path = _hub_file(name, model)
    if path is not None and (published := _published_shape(path)) is not None:
        own = getattr(model, "pos_embed", None)
        if own is not None and published != tuple(own.shape):
            raise BackboneError(
                f"{name.explicit} is not supported: its published position embedding has {published[1]} tokens and its "
                f"model {own.shape[1]}, and timm's resizing in float32 depends on the processor"
            )
    if preprocessing.input_size is None:
        return AS_STORED
    parameter = getattr(model, "pos_embed", None)
    stored = None if parameter is None else parameter.detach()
    resize_model(name, model, preprocessing.input_size)
    if stored is None:
        return AS_STORED
    method = preprocessing.position_embedding or ANTIALIASED
    resized = _convert_state(model, stored, method)
    model.load_state_dict({"pos_embed": resized}, strict=False)
    return AS_STORED if resized is stored else method


def resize_model(name: ModelName, model: Any, size: Size) -> None:
    """Make a model of timm take images of another size; its position embedding is then resized by timm, in float32.

    Raises:
        RequestError: the size is no multiple of the patch.
        BackboneError: the model has one size only.
    """
    if tuple(model.patch_embed.img_size) == size:
        return
    require_patch_multiple(name.explicit, size, tuple(model.patch_embed.patch_size))
    if any("relative_position_bias_table" in key for key in model.state_dict()):
        raise BackboneError(
            f"{name.explicit} takes images of {size_text(tuple(model.patch_embed.img_size))} only: it has biases by relative "
            "position, which timm resizes in float32, and the result depends on the processor; leave --input-size out"
        )
    try:
        model.set_input_size(img_size=size)
    except Exception as error:  # models of other kinds lack the method, or raise what they like
        raise BackboneError(
            f"{name.explicit} takes images of {size_text(tuple(model.patch_embed.img_size))} only ({reason(error)}); leave "
            "--input-size out"
        ) from error


def load_file(
    name: ModelName, model: Any, weights: Path, key: str | None, preprocessing: Preprocessing
) -> tuple[str, Checkpoint]:
    """Load a local file, which must fill the model completely; `key` names one of several sets of weights.

    Returns:
        What happened to the position embedding (`AS_STORED` or one of `POSITION_METHODS`), and the set of weights that was taken.

    Raises:
        RequestError: the input size that is asked for is no multiple of the patch.
        BackboneError: the file cannot be read, or the model has one input size only.
        ValueError, RuntimeError: the weights do not fit.
    """
    checkpoint = read_checkpoint(weights, TIMM_ORDER, key)
    named = to_timm_names(checkpoint.state)
    state: dict[str, Any] = named.state
    taken = checkpoint.taken + (SEPARATOR if checkpoint.taken and named.prefix else "") + named.prefix
    checkpoint = replace(checkpoint, taken=taken, others=(*checkpoint.others, *named.other_prefixes))
    if preprocessing.input_size is not None:
        resize_model(name, model, preprocessing.input_size)
    method = preprocessing.position_embedding or ANTIALIASED
    stored = state.get("pos_embed")
    if isinstance(stored, Tensor) and stored.ndim == 3 and getattr(model, "pos_embed", None) is not None:
        state["pos_embed"] = _convert_state(model, stored, method)
    _fit_channels(model, state)
    _require_same_geometry(model, state)
    load_state(model, state)
    return AS_STORED if state.get("pos_embed") is stored else method, checkpoint


def _fit_channels(model: Any, state: Mapping[str, Any]) -> None:
    """Make the patch embedding of a model take as many channels as that of a state dict."""
    projection, stored = model.patch_embed.proj, state.get("patch_embed.proj.weight")
    if not isinstance(projection, nn.Conv2d) or not isinstance(stored, Tensor) or stored.ndim != 4:
        return
    if stored.shape[1] != projection.in_channels:
        model.patch_embed.proj = nn.Conv2d(
            stored.shape[1],
            projection.out_channels,
            projection.kernel_size,  # type: ignore[arg-type]  # two numbers
            projection.stride,  # type: ignore[arg-type]
            bias=projection.bias is not None,
        )


def load_state(model: Any, state: Mapping[str, Any]) -> None:
    """Load a state dict, in timm's names or in those of a published checkpoint, so that nothing is left as it was.

    Raises:
        ValueError, RuntimeError: the weights do not fit.
    """
    # timm's own filter converts the names of published checkpoints. Its own loading only logs what is missing, which
    # would leave random weights in place.
    family = import_module(type(model).__module__)
    convert = getattr(family, "checkpoint_filter_fn", vision_transformer.checkpoint_filter_fn)
    if convert is vision_transformer.checkpoint_filter_fn:
        convert = partial(convert, adapt_layer_scale=True)
    with redirect_stdout(io.StringIO()):  # the filter for DINOv3 prints
        converted = convert(dict(state), model)
    missing, unexpected = model.load_state_dict(converted, strict=False)
    unexpected = [key for key in unexpected if key.split(".")[0] in _OF_THE_BACKBONE]
    if missing or unexpected:
        difference, keys = ("lacks", missing) if missing else ("has, and the model has not,", unexpected)
        own = f"; it has {_first(list(state))}" if missing else ""
        raise ValueError(f"it {difference} {_first(keys)}{own}{_mismatch_hint(state)}")


def _first(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "no tensor"


def _mismatch_hint(state: Mapping[str, Any]) -> str:
    """Return a hint on the form of a mismatched checkpoint, from the names of its tensors; empty if unknown."""
    if any(re.search(r"(^|\.)layers?\.0\.(self_attn|attention)\.", name) for name in state):
        return (
            "; its names are those of Hugging Face transformers, of which ViT, MAE and DINOv2 are read: convert it to "
            "timm's names"
        )
    return ""


def hub_repository(name: ModelName) -> str | None:
    """Return the Hub repository that timm takes the weights of a name from; None if there is none."""
    repository = timm.get_pretrained_cfg(name.name).hf_hub_id
    return repository if isinstance(repository, str) else None


def weights_source(
    name: ModelName, model: Any, weights: Path | None, checkpoint: Checkpoint | None
) -> JsonObject:
    """Return the provenance of the weights that were loaded."""
    if weights is not None:
        return file_source(weights, {} if checkpoint is None else checkpoint.choice)
    repository, path = hub_repository(name), _hub_file(name, model)
    if repository is None:
        return {"origin": "url", "model": name.name, "url": model.pretrained_cfg.get("url")}
    return hub_source(name, repository, path)


def _hub_file(name: ModelName, model: Any) -> Path | None:
    repository = hub_repository(name)
    if repository is None:
        return None
    own = model.pretrained_cfg.get("hf_hub_filename")
    return cached_file(repository, (own,) if own else _HUB_FILES)


def _published_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape of ``pos_embed`` in a safetensors file; only its header is read."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return tuple(file.get_slice("pos_embed").get_shape()) if "pos_embed" in file.keys() else None  # noqa: SIM118


def _convert_state(model: Any, stored: Tensor, method: str) -> Tensor:
    num_prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    return fit_position_embedding(stored, num_prefix, tuple(model.patch_embed.grid_size), method)


def _require_same_geometry(model: Any, state: Mapping[str, Any]) -> None:
    """Refuse what timm's filter would resize in float32: patches, biases by position, embeddings of other libraries.

    Raises:
        ValueError: a shape is not the model's.
    """
    own = model.state_dict()
    for key, tensor in own.items():
        # The width may differ too, but that is torch's to say.
        sides = {"patch_embed.proj.weight": 2}.get(key, 0)
        if (sides or "relative_position_bias_table" in key) and isinstance(stored := state.get(key), Tensor):
            shape, expected = list(stored.shape), list(tensor.shape)
            if len(shape) == len(expected) and shape[-sides:] != expected[-sides:]:
                raise ValueError(f"its {key} has shape {shape}, expected {expected}")
    foreign = next((key for key in (*_FOREIGN_POSITIONS, "positional_embedding") if key in state), None)
    if foreign is not None and "pos_embed" in own:
        tokens, expected = state[foreign].shape[-2], own["pos_embed"].shape[1]
        if tokens != expected:
            raise ValueError(f"its {foreign} has {tokens} tokens, expected {expected}")


def storageless_model(name: ModelName) -> Any:
    """Make a model of timm to inspect its structure, without storage for its weights where possible."""
    try:
        with without_storage():
            return timm.create_model(name.name, num_classes=0)
    except Exception:  # older versions of timm read values while they build
        return timm.create_model(name.name, num_classes=0)
