"""Makes `model_table`: ``python -m featcache.extraction.tabulate > extract/models/table.py``, after any change of the aliases.

The libraries are asked for the form of every model, without storage for its weights; nothing is downloaded.
"""

import sys

from featcache.extraction.models.names import ALIASES, ModelName, resolve_model
from featcache.extraction.models.preprocessing import OWN, preset
from featcache.extraction.models.table import Row
from featcache.store.errors import BackboneError

_HEADER = '''"""The models behind the aliases. Made by `tabulate` from timm and open_clip; do not edit.

By explicit name: layers, width, class token or not, registers, rows and columns of patches, input size in pixels. Size and patches are those
of the alias, which may differ from those of the library's own name.
"""

from featcache.extraction.models.table import Row

TABLE: dict[str, Row] = {
'''


def main() -> None:
    """Print the table as Python."""
    sys.stdout.write(_HEADER)
    for explicit, alias in first_aliases().items():
        sys.stdout.write(f'    "{explicit}": {row_of(resolve_model(alias))},\n')
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
    size = timm_config(name, model, preset(name, OWN))["input_size"][-1]
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
    )


def _open_clip_row(name: ModelName) -> Row:
    from featcache.extraction.backbones.open_clip_vit import (
        layout_of_tower,
        storageless_model,
        why_tower_not_supported,
    )

    tower = storageless_model(name).visual
    _require_supported(name, why_tower_not_supported(tower))
    num_layers, width, layout = layout_of_tower(tower)
    return num_layers, width, layout.has_class_token, layout.num_registers, *layout.grid, tower.image_size[0]


def _require_supported(name: ModelName, problem: str | None) -> None:
    if problem is not None:
        raise BackboneError(f"{name.explicit} is not supported: {problem}")


if __name__ == "__main__":
    main()
