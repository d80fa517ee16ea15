"""Makes `model_table`: ``python -m featcache.extraction.tabulate > extract/models/table.py``, after any change of the aliases.

The libraries are asked for the form of every model, without storage for its weights; nothing is downloaded.
"""

import sys
from collections.abc import Mapping
from typing import Any

from featcache.extraction.models.names import ALIASES, ModelName, resolve_model
from featcache.extraction.models.preprocessing import OWN, preset
from featcache.extraction.models.table import Row
from featcache.store.errors import BackboneError
from featcache.store.preprocessing import preprocessing_label
from featcache.store.spec import BackboneSpec

_HEADER = '''"""The models behind the aliases. Made by `tabulate` from timm and open_clip; do not edit.

By explicit name; see `Row`. Size, patches and preprocessing are those of the alias, which may differ from those of the library's own name.
"""

Row = tuple[int, int, bool, int, int, int, int, str]
"""Layers, width, class token or not, registers, rows and columns of patches, input size in pixels, and the model's own preprocessing in a
few words: the input, the shorter side of the resized image that it is cut from, and the filter."""

# fmt: off
TABLE: dict[str, Row] = {
'''


def main() -> None:
    """Print the table as Python."""
    sys.stdout.write(_HEADER)
    for explicit, alias in first_aliases().items():
        *numbers, words = row_of(resolve_model(alias))
        sys.stdout.write(f'    "{explicit}": ({", ".join(map(str, numbers))}, "{words}"),\n')
    sys.stdout.write("}\n")


def first_aliases() -> dict[str, str]:
    """Return an alias of every model by its explicit name: an alias may have another input size than the library's own name."""
    aliases: dict[str, str] = {}
    for alias, explicit in ALIASES.items():
        aliases.setdefault(explicit, alias)
    return aliases


def row_of(name: ModelName) -> Row:
    """Return the row of a model, as its library says.

    Raises:
        BackboneError: the taps cannot read the model.
    """
    return _timm_row(name) if name.family == "timm" else _open_clip_row(name)


def _timm_row(name: ModelName) -> Row:
    from featcache.extraction.backbones.timm_vit import layout_of, timm_config, why_not_supported
    from featcache.extraction.backbones.timm_weights import storageless_model

    model = storageless_model(name)
    _require_supported(name, why_not_supported(model))
    config = timm_config(name, model, preset(name, OWN))
    size = config["input_size"][-1]
    if size != model.patch_embed.img_size[-1]:
        model.patch_embed.set_input_size(img_size=size)
    layout = layout_of(model)
    return (
        len(model.blocks),
        model.embed_dim,
        layout.has_class_token,
        layout.num_registers,
        *layout.grid,
        size,
        _label(size, {"library": "timm", **config}),
    )


def _open_clip_row(name: ModelName) -> Row:
    from featcache.extraction.backbones.open_clip_vit import (
        layout_of_tower,
        stated_preprocessing,
        storageless_model,
        why_tower_not_supported,
    )

    model = storageless_model(name)
    tower = model.visual
    _require_supported(name, why_tower_not_supported(tower))
    num_layers, width, layout = layout_of_tower(tower)
    size = tower.image_size[0]
    stated = {"library": "open_clip", **stated_preprocessing(name, model, preset(name, OWN))}
    label = _label(size, stated)
    return num_layers, width, layout.has_class_token, layout.num_registers, *layout.grid, size, label


def _label(size: int, stated: Mapping[str, Any]) -> str:
    """Return the preprocessing in a few words."""
    return preprocessing_label(BackboneSpec("", "", 1, 1, size, stated))


def _require_supported(name: ModelName, problem: str | None) -> None:
    if problem is not None:
        raise BackboneError(f"{name.explicit} is not supported: {problem}")


if __name__ == "__main__":
    main()
