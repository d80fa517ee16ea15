"""Backbones by name. A new family is one file with a subclass of `Backbone` and one entry in `load_backbone`.

A `torch.nn.Module` of your own becomes a backbone with `featcache.custom_backbone`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featcache.extraction.backbones.base import Backbone
from featcache.extraction.models.names import ModelName
from featcache.store.errors import RequestError


def load_backbone(name: ModelName, weights: Path | None = None, key: str | None = None) -> Backbone:
    """Load a backbone in eval mode on the CPU; only the library that it comes from is imported.

    Args:
        name: the resolved name.
        weights: local weights instead of the hub's.
        key: name of one of several sets of weights in that file; see `read_checkpoint`.

    Raises:
        UnknownNameError: the library has no such model, or the file no such set of weights.
        RequestError: the model's activation is not the one that the weights were trained with.
        BackboneError: the weights cannot be had or do not fit, or the model is of a kind that is not supported.
    """
    if name.family == "timm":
        from featcache.extraction.backbones.timm_vit import has_weights_by_position, load_timm

        backbone = load_timm(name, weights, key)
        if not has_weights_by_position(backbone.module):
            patch = backbone.spec.input_size // backbone.layout.grid[0]
            backbone.load_at = partial(_load_at, name, weights, key, patch)
        return backbone
    from featcache.extraction.backbones.open_clip_vit import load_open_clip

    return load_open_clip(name, weights, key)


@dataclass(frozen=True)
class _SizedName(ModelName):
    """A model name with an input size of its own."""

    input_size: int

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """See `ModelName`."""
        return {**super().preprocessing, "input_size": [3, self.input_size, self.input_size]}


def _load_at(name: ModelName, weights: Path | None, key: str | None, patch: int, input_size: int) -> Backbone:
    """Load the same weights for another input size in pixels.

    Raises:
        RequestError: the size is no multiple of the patches.
        BackboneError: the weights do not fit.
    """
    if input_size % patch:
        near = max(1, round(input_size / patch)) * patch
        raise RequestError(
            f"{name.explicit} has patches of {patch} px, and an input size of {input_size} px is no multiple; take {near}"
        )
    return load_backbone(_SizedName(name.given, name.family, name.name, input_size), weights, key)


def loading_notes(name: ModelName, backbone: Backbone) -> Iterator[str]:
    """Yield notes on choices made while a backbone was loaded: one of several sets of weights, another preprocessing."""
    from featcache.extraction.backbones.checkpoint import choice_text

    choice = choice_text(backbone.loaded.weights_source)
    if choice is not None:
        yield choice
    # A user of the library's own name may expect the library's own preprocessing; an alias is documented.
    if name.family == "timm" and name.given == name.explicit:
        from featcache.extraction.backbones.timm_vit import departure_text

        departure = departure_text(name)
        if departure is not None:
            yield departure
