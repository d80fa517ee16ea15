"""Frame of the heads that know which tokens belong to the same layer.

Shapes: M members, B batch, T = L * K tokens, L layers, K token kinds, D width, C classes.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.store.errors import RequestError


class LayerwiseHead(Head):
    """M heads over the same K tokens of every layer. A subclass builds its parameters after the frame and states its name.

    Args:
        num_tokens: T, the tokens of one layer after those of another.
        width: D.
        num_classes: C.
        dropouts: one probability for each of the M members.
        num_layers: L; by default T, so that every layer has one token.

    Raises:
        RequestError: the tokens do not divide evenly among the layers.
    """

    name: ClassVar[str]
    """Name in the registry, for errors."""

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_layers: int | None = None,
    ) -> None:
        super().__init__(num_tokens, width, num_classes, dropouts)
        self.num_layers = num_layers or num_tokens
        if self.num_layers < 1 or num_tokens % self.num_layers:
            raise RequestError(
                f"the {self.name} head needs the same tokens of every layer; {num_tokens} tokens do not divide among "
                f"{self.num_layers} layers"
            )
        self.num_kinds = num_tokens // self.num_layers

    @property
    def options(self) -> dict[str, Any]:
        """The number of layers; a subclass adds its own options."""
        return {"num_layers": self.num_layers}

    def by_layer(self, x: Tensor) -> Tensor:
        """Concatenate the tokens of every layer: ``[B, T, D]`` to ``[B, L, K * D]``, on the same memory."""
        return x.view(len(x), self.num_layers, self.num_kinds * self.width)
