"""Cost of an input size: how much longer an image takes than at the size at which a model's alias runs. No torch."""

from featcache.extraction.models.names import ALIASES, ModelName
from featcache.extraction.models.preprocessing import Size, size_text
from featcache.extraction.models.table import TABLE

_NOTABLE = 1.25


def cost_note(name: ModelName, size: Size, num_tokens: int, width: int) -> str | None:
    """Compare the time of an image with that of the model's alias; None if it is much the same, or there is no alias.

    Args:
        name: the model.
        size: of the input.
        num_tokens: all tokens N of a layer at that size.
        width: token width D.
    """
    if name.explicit not in TABLE:
        return None
    _, _, has_class_token, num_registers, rows, columns, usual, _ = TABLE[name.explicit]
    usual_tokens = rows * columns + num_registers + has_class_token
    ratio = _operations(num_tokens, width) / _operations(usual_tokens, width)
    if 1 / _NOTABLE < ratio < _NOTABLE:
        return None
    alias = next(alias for alias, explicit in ALIASES.items() if explicit == name.explicit)
    return (
        f"at {size_text(size)} an image has {num_tokens:,} tokens a layer, and the backbone takes about {ratio:.2g} times as long as at "
        f"{usual} px ({usual_tokens:,} tokens), the size of the alias {alias}; --dry-run measures the time"
    )


def _operations(num_tokens: int, width: int) -> int:
    """Return a number proportional to a block's multiplications: 12 D^2 a token in linear maps, 2 N D in attention."""
    return num_tokens * (12 * width + 2 * num_tokens)
