"""The heads that a probe can train. A new head is one small module here and one entry in `HEADS`.

No torch at import, so that the command line can list heads at once: a head's module is loaded when it is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from featcache.store.errors import RequestError, UnknownNameError

if TYPE_CHECKING:
    from featcache.probe.heads.base import Head


@dataclass(frozen=True)
class HeadInfo:
    """What the rest of the package knows of a head without building it."""

    name: str
    factory: str
    """``module:class`` of a `Head`."""
    has_dropout: bool
    has_attention: bool
    """Whether it has the method ``attention(x)``."""
    default_layers: str
    default_tokens: tuple[str, ...]
    summary: str
    source: str

    def build(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        **options: int,
    ) -> Head:
        """Build M heads for inputs ``[B, num_tokens, width]``, all initialised alike from torch's global generator.

        Args:
            num_tokens: T.
            width: D.
            num_classes: C.
            dropouts: on the attention weights, for each of the M members.
            options: what the head takes besides, such as ``num_heads``.

        Raises:
            RequestError: the head cannot have this size, or has no dropout.
        """
        for dropout in dropouts:
            if dropout and not self.has_dropout:
                raise RequestError(f"head {self.name!r} has no dropout, so {dropout} cannot be set; use 0")
        module, _, class_name = self.factory.partition(":")
        factory = getattr(import_module(module), class_name)
        head: Head = factory(num_tokens, width, num_classes, tuple(dropouts), **options)
        return head


_ENTRIES = (
    HeadInfo(
        name="linear",
        factory="featcache.probe.heads.linear:LinearHead",
        has_dropout=False,
        has_attention=False,
        default_layers="last",
        default_tokens=("cls",),
        summary="one affine map of the concatenated tokens",
        source="arXiv 2601.09322 (baseline)",
    ),
    HeadInfo(
        name="attentive",
        factory="featcache.probe.heads.attentive:AttentiveHead",
        has_dropout=True,
        has_attention=True,
        default_layers="all",
        default_tokens=("cls", "ap"),
        summary="one learned query attends to the tokens of all layers",
        source="arXiv 2601.09322",
    ),
)

HEADS: dict[str, HeadInfo] = {info.name: info for info in _ENTRIES}


def get_head(name: str) -> HeadInfo:
    """Return the head called `name`.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in HEADS:
        raise UnknownNameError("head", name, HEADS)
    return HEADS[name]
