"""Taps: forward hooks that pool the tokens of every layer on the device, so that only ``[B, K, D]`` leaves a layer."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from featcache.extract.backbones.base import Backbone
from featcache.store.inventory import DEFAULT_TAP
from featcache.store.layers import FINAL


def pool_tokens(tokens: Tensor, num_prefix_tokens: int, kinds: Sequence[str]) -> Tensor:
    """Pool all tokens of a layer to one vector per token kind.

    Args:
        tokens: ``[B, N, D]``, class token first, then registers, then patches.
        num_prefix_tokens: number of tokens before the patches; ``ap`` leaves them out.
        kinds: token kinds, ``cls`` or ``ap``.

    Returns:
        ``[B, K, D]`` float32.
    """
    pooled = {
        "cls": lambda: tokens[:, 0].float(),
        "ap": lambda: tokens[:, num_prefix_tokens:].mean(1, dtype=torch.float32),
    }
    return torch.stack([pooled[kind]() for kind in kinds], 1)


class Taps:
    """Records the pooled tokens of `norm2` of all blocks and of the final norm; use as a context manager.

    Args:
        backbone: the backbone, already on its device.
        kinds: token kinds, in the order wanted.
    """

    def __init__(self, backbone: Backbone, kinds: Sequence[str]) -> None:
        self._backbone = backbone
        self._kinds = tuple(kinds)
        self._blocks: list[Tensor | None] = [None] * backbone.spec.num_layers
        self._final: Tensor | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for index in range(self._backbone.spec.num_layers):
            module = self._backbone.tap_point(DEFAULT_TAP, index).module
            self._handles.append(module.register_forward_hook(self._block_hook(index)))
        self._handles.append(self._backbone.final_norm.register_forward_hook(self._final_hook))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run the backbone once and return the features of all layers.

        Args:
            images: ``[B, 3, S, S]`` on the backbone's device.

        Returns:
            ``norm2`` as ``[B, L, K, D]`` and ``final`` as ``[B, 1, K, D]``, float32.
        """
        # Nothing of an earlier pass may stand in for a hook that does not fire in this one.
        self._blocks = [None] * len(self._blocks)
        self._final = None
        self._backbone.forward(images)
        blocks = [pooled for pooled in self._blocks if pooled is not None]
        if len(blocks) != len(self._blocks) or self._final is None:
            raise RuntimeError("a tapped module was not called during the forward pass")
        return {DEFAULT_TAP: torch.stack(blocks, 1), FINAL: self._final.unsqueeze(1)}

    def _block_hook(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> None:
            batch_first = tokens.transpose(0, 1) if self._backbone.sequence_first else tokens
            self._blocks[index] = self._pool(batch_first)

        return hook

    def _final_hook(self, module: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> None:
        self._final = self._pool(tokens)

    def _pool(self, tokens: Tensor) -> Tensor:
        return pool_tokens(tokens, self._backbone.layout.num_prefix_tokens, self._kinds)
