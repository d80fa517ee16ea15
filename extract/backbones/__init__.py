"""Backbones by name. A new family is one file with a subclass of `Backbone` and one entry in `load_backbone`.

A `torch.nn.Module` of your own becomes a backbone with `featcache.custom_backbone`.
"""

from collections.abc import Iterator
from pathlib import Path

from featcache.extraction.backbones.base import Backbone
from featcache.extraction.models.cost import cost_note
from featcache.extraction.models.names import TRANSFORMERS, ModelName
from featcache.extraction.models.preprocessing import OWN, Preprocessing, other_size, preset
from featcache.store.errors import RequestError


def load_backbone(
    name: ModelName,
    weights: Path | None = None,
    key: str | None = None,
    preprocessing: Preprocessing | None = None,
    *,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a backbone in eval mode on the CPU; only the library that it comes from is imported.

    Args:
        name: the resolved name.
        weights: local weights instead of the hub's; for transformers also a folder with a repository's files.
        key: name of one of several sets of weights in that file; see `read_checkpoint`.
        preprocessing: changes to the library's settings; the model's own if not given.
        trust_remote_code: whether code of a repository of transformers may run.

    Raises:
        UnknownNameError: the library has no such model, or the file no such set of weights.
        RequestError: the model's activation is not the one that the weights were trained with, the preprocessing does not fit the
            model, a library is not installed, or a repository needs code of its own.
        BackboneError: the weights cannot be had or do not fit, or the model is of a kind that is not supported.
    """
    changes = preset(name, OWN) if preprocessing is None else preprocessing
    if name.family == "timm":
        from featcache.extraction.backbones.timm_vit import load_timm

        return _resizable(load_timm(name, weights, key, changes), name, weights, key, changes)
    if name.family == TRANSFORMERS:
        _require_transformers()
        from featcache.extraction.backbones.transformers_vit import load_transformers

        loaded = load_transformers(name, weights, key, changes, trust_remote_code)
        return _resizable(loaded, name, weights, key, changes, trust_remote_code)
    from featcache.extraction.backbones.open_clip_vit import load_open_clip

    return _resizable(load_open_clip(name, weights, key, changes), name, weights, key, changes)


def _resizable(
    backbone: Backbone,
    name: ModelName,
    weights: Path | None,
    key: str | None,
    changes: Preprocessing,
    trust_remote_code: bool = False,
) -> Backbone:
    """Let a backbone load its weights for other input sizes; what a model of one size says to that, loading tells."""

    def load_at(input_size: int) -> Backbone:
        other = other_size(changes, name, backbone.spec, input_size)
        return load_backbone(name, weights, key, other, trust_remote_code=trust_remote_code)

    backbone.load_at = load_at
    return backbone


def _require_transformers() -> None:
    """Refuse a model of transformers where the library is not installed.

    Raises:
        RequestError: with the command that installs it.
    """
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise RequestError(
            "models of Hugging Face need transformers, which is not installed: pip install 'featcache[transformers]'"
        )


def loading_notes(name: ModelName, backbone: Backbone) -> Iterator[str]:
    """Yield notes on a backbone: the choice of one of several sets of weights, and what an unusual input size costs."""
    from featcache.extraction.backbones.checkpoint import choice_text

    choice = choice_text(backbone.loaded.weights_source)
    if choice is not None:
        yield choice
    yield from backbone.loaded.notes
    cost = cost_note(name, backbone.spec.image_size, backbone.layout.num_tokens, backbone.spec.width)
    if cost is not None:
        yield cost
