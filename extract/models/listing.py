"""The models that have an alias, and what a cache of each of them costs, without loading any library. No torch here."""

from dataclasses import dataclass

from featcache.extraction.models.names import ALIASES
from featcache.store.errors import UnknownNameError
from featcache.store.files import JsonObject

_BYTES_PER_VALUE = 2  # float16, the default


@dataclass(frozen=True)
class ListedModel:
    """A model with an alias."""

    alias: str
    explicit: str
    num_layers: int
    width: int
    has_class_token: bool
    num_registers: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    input_size: int
    """Side of the square input, pixels."""
    preprocessing: str
    """The model's own preprocessing, such as ``224 px of 256 px bicubic``: input, shorter side of the resized image, filter."""

    @property
    def bytes_per_image(self) -> int:
        """Size of an image in a cache as `extract` makes it: float16, all layers and final, class token and average."""
        kinds = int(self.has_class_token) + 1
        return (self.num_layers + 1) * kinds * self.width * _BYTES_PER_VALUE

    def to_dict(self) -> JsonObject:
        """Return the model as plain JSON values."""
        return {
            "alias": self.alias,
            "name": self.explicit,
            "layers": self.num_layers,
            "width": self.width,
            "class_token": self.has_class_token,
            "registers": self.num_registers,
            "patches": self.grid[0] * self.grid[1],
            "grid": list(self.grid),
            "input_size": self.input_size,
            "preprocessing": self.preprocessing,
            "bytes_per_image": self.bytes_per_image,
        }


def listed_models(part: str = "") -> list[ListedModel]:
    """The models whose alias or explicit name contains `part`, in any case; all of them without it.

    Raises:
        UnknownNameError: there is none.
    """
    from featcache.extraction.models.table import TABLE

    wanted = part.lower()
    found = [name for name, explicit in ALIASES.items() if wanted in name or wanted in explicit.lower()]
    if not found:
        raise UnknownNameError("model", part, ALIASES)
    models = []
    for alias in found:
        num_layers, width, has_class_token, num_registers, rows, columns, size, words = TABLE[ALIASES[alias]]
        tokens = (has_class_token, num_registers, (rows, columns))
        models.append(ListedModel(alias, ALIASES[alias], num_layers, width, *tokens, size, words))
    return models
