"""``featcache models``: the backbones that have a short name."""

import click

from featcache.cli.options import output_options
from featcache.extraction.models.listing import ListedModel, listed_models
from featcache.terminal.console import format_size, print_json, print_table

COLUMNS = ("model", "layers", "width", "tokens", "per image", "own preprocessing", "explicit name")
NUMERIC = COLUMNS[1:5]


@click.command("models", epilog="\b\nExamples:\n  featcache models\n  featcache models siglip\n")
@click.argument("name", default="")
@output_options
def models_command(name: str, as_json: bool) -> None:
    """List the backbones that have a short name, or those with NAME in it or in their explicit name.

    Tokens are class token + registers + patches; "per image" is what an image takes in a cache that holds the class token
    (where there is one) and the average of the patches of all layers in float16; "own preprocessing" is the input, the shorter side of the
    resized image that its center is cut from, and the filter. Any other vision transformer of timm or
    open_clip goes by its explicit name: timm:NAME[.TAG] or open_clip:ARCHITECTURE/TAG. A vision transformer of Hugging Face
    transformers goes by its repository: transformers:OWNER/NAME[@REVISION], or transformers:./FOLDER for a local copy
    (pip install 'featcache[transformers]').
    """
    models = listed_models(name)
    if as_json:
        print_json([model.to_dict() for model in models])
    else:
        print_table(COLUMNS, [_row(model) for model in models], numeric=NUMERIC)


def _row(model: ListedModel) -> list[str]:
    tokens = f"{int(model.has_class_token)}+{model.num_registers}+{model.grid[0] * model.grid[1]}"
    numbers = [str(model.num_layers), str(model.width), tokens, format_size(model.bytes_per_image)]
    return [model.alias, *numbers, model.preprocessing, model.explicit]
