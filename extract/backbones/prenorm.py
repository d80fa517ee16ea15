"""The usual block of a vision transformer, and what its taps must have to do with each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from featcache.extraction.backbones.base import Check


@dataclass(frozen=True)
class PreNormBlock:
    """A block of the usual form: ``x = x + a(attn(norm1(x)))``, then ``x = x + m(mlp(norm2(x)))``."""

    norm1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    mlp_projection: nn.Module
    """The last map of the MLP, from its hidden activation."""
    scale_attention: Callable[[Tensor], Tensor]
    """The ``a`` above: all that happens to the attention's output before it is added."""
    scale_mlp: Callable[[Tensor], Tensor]
    """The ``m`` above."""

    def checks(self, entered: Tensor, taps: Mapping[str, Tensor]) -> list[Check]:
        """Return the equations of the block, every tap in at least one of them."""
        middle = entered + self.scale_attention(taps["attn"])
        return [
            Check("norm1, recomputed from what enters the block,", self.norm1(entered), taps["norm1"]),
            Check("norm2, recomputed from the attention,", self.norm2(middle), taps["norm2"]),
            Check(
                "the block's output, recomputed from norm2,",
                middle + self.scale_mlp(self.mlp(taps["norm2"])),
                taps["block"],
            ),
            Check(
                "the block's output, recomputed from the MLP's hidden activation,",
                middle + self.scale_mlp(self.mlp_projection(taps["mlp"])),
                taps["block"],
            ),
        ]
