"""Taps: forward hooks that pool the tokens of a layer on the device, so that only what is cached leaves it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featcache.extraction.backbones.base import Backbone, TapPoint, TokenLayout
from featcache.store.layers import FINAL
from featcache.store.token_groups import (
    EMBEDDING,
    GRIDS,
    PATCHES,
    POOLED,
    REGISTERS,
    STATISTICS,
    parse_array_name,
)

GEM_EXPONENT = 3
GEM_FLOOR = 1e-6
"""Smallest value that the generalized mean takes; negative ones have no real root. Both constants are those of Radenovic et al. 2018."""


class Wanted(Protocol):
    """An array that a forward pass is to fill: `ArrayInfo` and `TokenArray` are such."""

    @property
    def name(self) -> str:
        """Its name, which tells tap and group of tokens."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers, in order."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tokens, in order."""


def pool_tokens(tokens: Tensor, layout: TokenLayout, group: str, kinds: Sequence[str]) -> Tensor:
    """Take one group of tokens from all tokens of a layer.

    Args:
        tokens: ``[B, N, D]`` in the order of `layout`.
        layout: of the backbone.
        group: ``pooled``, ``registers``, ``patches``, ``grid2``, ``grid4``, or a statistic over the patches.
        kinds: of the pooled group the token kinds, ``cls`` or ``ap``; the other groups are taken whole.

    Returns:
        ``[B, K, D]`` float32.
    """
    first = int(layout.has_class_token)
    patches = tokens[:, layout.num_prefix_tokens :]
    if group == REGISTERS:
        return tokens[:, first : layout.num_prefix_tokens].float()
    if group == PATCHES:
        return patches.float()
    if group in GRIDS:
        # Regions of equal size up to one patch, where the grid does not divide evenly (they then share a row or column).
        square = patches.float().transpose(1, 2).reshape(len(tokens), -1, *layout.grid)  # [B, D, H, W]
        return F.adaptive_avg_pool2d(square, GRIDS[group]).flatten(2).transpose(1, 2)
    if group in STATISTICS:
        return _statistic(patches.float(), group).unsqueeze(1)
    pooled = {
        "cls": lambda: tokens[:, 0].float(),
        "ap": lambda: patches.mean(1, dtype=torch.float32),
    }
    return torch.stack([pooled[kind]() for kind in kinds], 1)


def _statistic(patches: Tensor, name: str) -> Tensor:
    """Reduce float32 patches ``[B, P, D]`` to ``[B, D]``."""
    if name == "sd":
        # torch.std takes twenty times as long along an axis that is not the last one.
        return (patches - patches.mean(1, keepdim=True)).square_().mean(1).sqrt_()
    if name == "gem":
        return patches.clamp(min=GEM_FLOOR).pow_(GEM_EXPONENT).mean(1).pow_(1 / GEM_EXPONENT)
    return patches.amax(1) if name == "max" else patches.amin(1)


class Taps:
    """Records what some arrays want of every layer in one forward pass; use as a context manager.

    Args:
        backbone: the backbone, already on its device.
        arrays: what to record.

    Raises:
        BackboneError: the blocks have no such tap.
    """

    def __init__(self, backbone: Backbone, arrays: Iterable[Wanted]) -> None:
        self._backbone = backbone
        self._arrays = tuple(arrays)
        self._recorded: dict[tuple[str, str], Tensor] = {}
        self._handles: list[Any] = []
        self._points: dict[tuple[str, str], TapPoint] = {}
        """By tap and layer."""
        self._wanted: dict[tuple[str, str], list[Wanted]] = defaultdict(list)
        for array in self._arrays:
            tap, _ = parse_array_name(array.name)
            for layer in array.layers:
                self._points[tap, layer] = _point(backbone, tap, layer)
                self._wanted[tap, layer].append(array)

    def __enter__(self) -> Self:
        for (tap, layer), point in self._points.items():
            self._handles.append(self._hook(point, tap, layer))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run the backbone once and return what was wanted.

        Args:
            images: ``[B, 3, S, S]`` on the backbone's device.

        Returns:
            Every array by name as ``[B, L, K, D]`` float32, L the layers that it wants.
        """
        self._recorded = {}  # nothing of an earlier pass may stand in for a hook that does not fire in this one
        try:
            self._backbone.forward(images)
            return {array.name: self._stacked(array) for array in self._arrays}
        finally:  # nor may what a pass that failed has recorded fill the memory for the next try
            self._recorded = {}

    def _stacked(self, array: Wanted) -> Tensor:
        try:
            return torch.stack([self._recorded[array.name, layer] for layer in array.layers], 1)
        except KeyError:
            raise RuntimeError("a tapped module was not called during the forward pass") from None

    def _hook(self, point: TapPoint, tap: str, layer: str) -> Any:
        # Inside the blocks tokens may be [N, B, D]; the final norm and what follows see [B, N, D].
        in_block = layer != FINAL

        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> None:
            tokens = point.tokens(inputs, output)
            if in_block and self._backbone.sequence_first:
                tokens = tokens.transpose(0, 1)
            for array in self._wanted[tap, layer]:
                self._recorded[array.name, layer] = self._take(tokens, array)

        if point.side == "input":
            return point.module.register_forward_pre_hook(record)
        return point.module.register_forward_hook(record)

    def _take(self, tokens: Tensor, array: Wanted) -> Tensor:
        tap, group = parse_array_name(array.name)
        if tap == EMBEDDING:  # [B, E]: no tokens any more
            return tokens.float().unsqueeze(1)
        return pool_tokens(tokens, self._backbone.layout, group, array.tokens if group == POOLED else ())


def _point(backbone: Backbone, tap: str, layer: str) -> TapPoint:
    if tap == FINAL:
        return TapPoint(backbone.final_norm, backbone.spec.width)
    if tap == EMBEDDING:
        point = backbone.embedding_point
        if point is None:
            raise RuntimeError("this backbone has no pooled output of its own")
        return point
    return backbone.tap_point(tap, int(layer))
