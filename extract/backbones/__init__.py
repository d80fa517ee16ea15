"""Backbones by name. A new family is one file with a subclass of `Backbone` and one entry in `load_backbone`.

A `torch.nn.Module` of your own becomes a backbone with `featcache.extract.backbones.custom.custom_backbone`.
"""

from pathlib import Path

from featcache.extract.backbones.base import Backbone
from featcache.extract.models import ModelName


def load_backbone(name: ModelName, weights: Path | None = None) -> Backbone:
    """Load a backbone in eval mode on the CPU; only the library that it comes from is imported.

    Raises:
        UnknownNameError: the library has no such model.
        RequestError: the model's activation is not the one that the weights were trained with.
        BackboneError: the weights cannot be had or do not fit, or the model is of a kind that is not supported.
    """
    if name.family == "timm":
        from featcache.extract.backbones.timm_vit import load_timm

        return load_timm(name, weights)
    from featcache.extract.backbones.open_clip_vit import load_open_clip

    return load_open_clip(name, weights)
