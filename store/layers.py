"""Names of layers and of layer sets.

A layer is named by the index of its backbone block, ``"0"`` to ``str(L-1)``, or ``"final"`` (the model's final norm),
never by a position in an array. The sets are those of arXiv 2601.09322, and ``every``, which adds block 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from featcache.store.errors import RequestError, UnknownNameError

FINAL = "final"
TOKEN_KINDS = ("cls", "ap")
LAYER_SETS = ("last", "mid+last", "quarters", "all", "every")


def layer_set(name: str, num_layers: int) -> tuple[str, ...]:
    """Return the layer names of the set `name` for a backbone of L = `num_layers` blocks.

    Raises:
        UnknownNameError: there is no such set.
    """
    indices: dict[str, Sequence[int]] = {
        "last": (),
        "mid+last": (num_layers // 2,),
        "quarters": (num_layers // 4, num_layers // 2, 3 * num_layers // 4),
        "all": range(1, num_layers),
        "every": range(num_layers),
    }
    if name not in indices:
        raise UnknownNameError("layer set", name, LAYER_SETS)
    # A backbone of fewer than four blocks would name a block twice.
    return (*(str(i) for i in dict.fromkeys(indices[name])), FINAL)


@dataclass(frozen=True)
class LayerSelection:
    """A layer set or a list of layers, before it is known how many blocks the backbone has."""

    names: tuple[str, ...]
    """One layer set, or layers."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a set name, or a list such as ``0,3,final``.

        Raises:
            RequestError: a layer is named more than once, or none is named.
        """
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        _refuse_empty_or_doubled("layer", text, names)
        return cls(names)

    @property
    def set_name(self) -> str | None:
        """The layer set; None for a list."""
        return self.names[0] if self.names[0] in LAYER_SETS and len(self.names) == 1 else None

    def of(self, num_layers: int) -> tuple[str, ...]:
        """Return the layers of a backbone of L = `num_layers` blocks.

        Raises:
            UnknownNameError: a name is neither a set nor a layer of the backbone.
            RequestError: a set is part of a list.
        """
        if self.set_name is not None:
            return layer_set(self.set_name, num_layers)
        valid = layer_set("every", num_layers)
        for name in self.names:
            if name in LAYER_SETS:
                raise RequestError(
                    f"the layer set {name!r} stands alone, not in a list such as {str(self)!r}; it is "
                    f"{','.join(layer_set(name, num_layers))}, to which further blocks can be added"
                )
            if name not in valid:
                raise UnknownNameError(
                    "layer", name, (*LAYER_SETS, *valid), f"(blocks 0 to {num_layers - 1}, or final)"
                )
        return self.names

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return ",".join(self.names)


def as_layers(given: str | LayerSelection) -> LayerSelection:
    """Convert a layer set or a list of layers given as text."""
    return given if isinstance(given, LayerSelection) else LayerSelection.parse(given)


def as_optional_layers(given: str | LayerSelection | None) -> LayerSelection | None:
    """Convert a layer set or a list of layers given as text; None stays None."""
    return None if given is None else as_layers(given)


def parse_layers(text: str, num_layers: int) -> tuple[str, ...]:
    """Return the layer names that `text` asks for: a set name, or a list such as ``0,3,final``.

    Raises:
        UnknownNameError: a name is neither a set nor a layer of the backbone.
        RequestError: a layer is named twice, a set is part of a list, or none is named.
    """
    return LayerSelection.parse(text).of(num_layers)


def parse_tokens(text: str) -> tuple[str, ...]:
    """Return the token kinds that `text` asks for: ``cls``, ``ap``, or both as ``cls+ap`` (or with a comma).

    Raises:
        UnknownNameError: a kind does not exist.
        RequestError: a kind is named twice, or none is named.
    """
    names = split_tokens(text)
    for name in names:
        if name not in TOKEN_KINDS:
            raise UnknownNameError("token kind", name, TOKEN_KINDS)
    return names


def split_tokens(text: str) -> tuple[str, ...]:
    """Return the names in a list of token kinds such as ``cls+ap`` or ``patch0,patch1``, whether they exist or not.

    Raises:
        RequestError: a kind is named twice, or none is named.
    """
    names = tuple(name.strip() for name in text.replace("+", ",").split(",") if name.strip())
    _refuse_empty_or_doubled("token kind", text, names)
    return names


def _refuse_empty_or_doubled(noun: str, text: str, names: tuple[str, ...]) -> None:
    if not names:
        raise RequestError(f"no {noun} is named in {text!r}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise RequestError(f"{noun} {', '.join(doubled)} is named more than once in {text!r}")
