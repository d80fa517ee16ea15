"""Backbones by name. A new family is one file with a subclass of `Backbone` and one entry in `load_backbone`.

A `torch.nn.Module` of your own becomes a backbone with `featcache.custom_backbone`.
"""

from collections.abc import Iterator
from pathlib import Path

from featcache.extraction.backbones.base import Backbone
from featcache.extraction.models.cost import cost_note
from featcache.extraction.models.names import ModelName
from featcache.extraction.models.preprocessing import OWN, Preprocessing, other_size, preset


def load_backbone(
    name: ModelName,
    weights: Path | None = None,
    key: str | None = None,
    preprocessing: Preprocessing | None = None,
) -> Backbone:
    """Load a backbone in eval mode on the CPU; only the library that it comes from is imported.

    Args:
        name: the resolved name.
        weights: local weights instead of the hub's.
        key: name of one of several sets of weights in that file; see `read_checkpoint`.
        preprocessing: changes to the library's settings; the model's own if not given.

    Raises:
        UnknownNameError: the library has no such model, or the file no such set of weights.
        RequestError: the model's activation is not the one that the weights were trained with, or the preprocessing does not fit the
            model.
        BackboneError: the weights cannot be had or do not fit, or the model is of a kind that is not supported.
    """
    changes = preset(name, OWN) if preprocessing is None else preprocessing
    if name.family == "timm":
        from featcache.extraction.backbones.timm_vit import load_timm

        return _resizable(load_timm(name, weights, key, changes), name, weights, key, changes)
    from featcache.extraction.backbones.open_clip_vit import load_open_clip

    return _resizable(load_open_clip(name, weights, key, changes), name, weights, key, changes)


def _resizable(
    backbone: Backbone, name: ModelName, weights: Path | None, key: str | None, changes: Preprocessing
) -> Backbone:
    """Let a backbone load its weights for other input sizes; what a model of one size says to that, loading tells."""

    def load_at(input_size: int) -> Backbone:
        return load_backbone(name, weights, key, other_size(changes, name, backbone.spec, input_size))

    backbone.load_at = load_at
    return backbone


def loading_notes(name: ModelName, backbone: Backbone) -> Iterator[str]:
    """Yield notes on a backbone: the choice of one of several sets of weights, and what an unusual input size costs."""
    from featcache.extraction.backbones.checkpoint import choice_text

    choice = choice_text(backbone.loaded.weights_source)
    if choice is not None:
        yield choice
    cost = cost_note(name, backbone.spec.image_size, backbone.layout.num_tokens, backbone.spec.width)
    if cost is not None:
        yield cost
