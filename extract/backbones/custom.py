"""Any vision transformer that is a `torch.nn.Module`, made a backbone by the names of its parts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from featcache.extraction.backbones.base import (
    Backbone,
    LoadedModel,
    TapPoint,
    TokenLayout,
    missing_tap_error,
)
from featcache.extraction.backbones.weights import state_digest
from featcache.store.errors import BackboneError, UnknownNameError
from featcache.store.inventory import TAPS
from featcache.store.spec import BackboneSpec
from featcache.store.text import reason

_INPUT = ":input"

Forward = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """The names of the parts of a module, as `torch.nn.Module.get_submodule` takes them.

    A name that ends in ``:input`` stands for what that module takes, not for what it gives.
    """

    blocks: str | Sequence[str]
    """The list of blocks, such as ``encoder.layer``, or the name of each of them."""
    final_norm: str
    """The module whose output is the tokens of the last layer, ``[B, N, D]``."""
    taps: Mapping[str, str]
    """Names within a block of those of ``norm2``, ``norm1``, ``attn`` and ``mlp`` that it has, such as
    ``{"norm2": "layernorm_after", "mlp": "output.dense:input"}``; ``mlp`` is the hidden activation."""
    embedding: str | None = None
    """The module that gives the pooled output ``[B, E]``, if pooling is more than picking or averaging tokens."""


class CustomBackbone(Backbone):
    """A module and the names of its parts; `custom_backbone` makes one."""

    def __init__(
        self,
        loaded: LoadedModel,
        parts: Parts,
        widths: Mapping[str, int],
        *,
        forward: Forward,
        head: Callable[[Tensor], Tensor] | None,
        projection: Tensor | None,
        sequence_first: bool,
    ) -> None:
        super().__init__(loaded)
        self._blocks = _block_names(loaded.module, parts)
        self._parts = parts
        self._widths = widths
        self._forward = forward
        self._head = head
        self._projection = projection
        self._sequence_first = sequence_first

    @property
    def sequence_first(self) -> bool:
        """The value that was given."""
        return self._sequence_first

    def tap_point(self, tap: str, block: int) -> TapPoint:
        """Return the part of a block that was named for the tap."""
        name = _tap_names(self._parts).get(tap)
        if name is None:
            raise missing_tap_error(self.spec.architecture, tap, tuple(_tap_names(self._parts)))
        inside = name.removesuffix(_INPUT)
        path = self._blocks[block] + (f".{inside}" if inside else "")
        part = self.module.get_submodule(path)
        return TapPoint(part, self._widths[tap], "input" if name.endswith(_INPUT) else "output")

    @property
    def final_norm(self) -> nn.Module:
        """The part that was named."""
        return self.module.get_submodule(self._parts.final_norm)

    @property
    def embedding_point(self) -> TapPoint | None:
        """The part that was named."""
        if self._parts.embedding is None:
            return None
        return TapPoint(self.module.get_submodule(self._parts.embedding), self._widths["embedding"])

    @property
    def projection(self) -> Tensor | None:
        """The value that was given."""
        return self._projection

    def output_from_final(self, tokens: Tensor) -> Tensor | None:
        """Call the function that was given."""
        return None if self._head is None else self._head(tokens)

    def forward(self, images: Tensor) -> Tensor:
        """Call the function that was given."""
        return self._forward(self.module, images)


def custom_backbone(
    module: nn.Module,
    parts: Parts,
    layout: TokenLayout,
    *,
    name: str,
    input_size: int,
    transform: Callable[[Image], Tensor],
    preprocessing: Mapping[str, Any],
    forward: Forward = lambda module, images: module(images),
    head: Callable[[Tensor], Tensor] | None = None,
    projection: Tensor | None = None,
    sequence_first: bool = False,
) -> CustomBackbone:
    """Make a backbone of any module that passes ``[B, N, D]`` tokens through a list of blocks.

    The module is put into eval mode and run once, to see that every part is there and what it gives.

    Args:
        module: the vision transformer, with its weights, on the CPU.
        parts: the names of its parts.
        layout: the order of its tokens.
        name: what to call it; part of the cache's key, with the digest of the weights.
        input_size: side of the square input, pixels.
        transform: RGB image to ``[3, S, S]`` float32. Has to be picklable where images are decoded in other processes.
        preprocessing: what `transform` does, as plain JSON values; part of the key.
        forward: how to get the output ``[B, ...]`` for images ``[B, 3, S, S]``, if not by calling the module.
        head: the output from the tokens of the last layer ``[B, N, D]``. With it the self-test checks the path to the
            output number by number, without it only that there is one.
        projection: the matrix ``[D, E]`` that the model multiplies its pooled token with, if it has one.
        sequence_first: tokens are ``[N, B, D]`` inside the blocks.

    Raises:
        UnknownNameError: the module has no part of that name, or a tap is called something else than those of `TAPS`.
        BackboneError: the module does not run, or a part gives tokens of an unexpected shape.
        TypeError: `preprocessing` is not JSON.

    Example:
        >>> backbone = custom_backbone(  # doctest: +SKIP
        ...     vit, Parts("blocks", "norm", {"norm2": "norm2", "mlp": "mlp.fc2:input"}), TokenLayout(True, 0, (14, 14)),
        ...     name="my-vit", input_size=224, transform=transform, preprocessing={"resize": 256, "crop": 224},
        ... )
    """
    json.dumps(dict(preprocessing))
    module = module.eval()
    _require_parts(module, name, parts)
    block_names = _block_names(module, parts)
    widths = _widths(module, name, parts, block_names[0], layout, input_size, forward, sequence_first)
    spec = BackboneSpec(
        architecture=f"custom:{name}",
        weights_digest=state_digest(module),
        num_layers=len(block_names),
        width=widths["final"],
        input_size=input_size,
        preprocessing=dict(preprocessing),
    )
    loaded = LoadedModel(spec, module, transform, layout, {"origin": "memory", "model": name})
    return CustomBackbone(
        loaded,
        parts,
        widths,
        forward=forward,
        head=head,
        projection=projection,
        sequence_first=sequence_first,
    )


def _tap_names(parts: Parts) -> dict[str, str]:
    """Return the names within a block by tap, in the order of `TAPS`; the block itself has none."""
    names = {"block": "", **parts.taps}
    return {tap: names[tap] for tap in TAPS if tap in names}


def _block_names(module: nn.Module, parts: Parts) -> list[str]:
    if not isinstance(parts.blocks, str):
        return list(parts.blocks)
    children = module.get_submodule(parts.blocks).named_children()
    return [f"{parts.blocks}.{child}" for child, _ in children]


def _require_parts(module: nn.Module, name: str, parts: Parts) -> None:
    for tap in parts.taps:
        if tap not in TAPS or tap == "block":
            raise UnknownNameError("tap", tap, [tap for tap in TAPS if tap != "block"])
    lists = [parts.blocks] if isinstance(parts.blocks, str) else []
    _require_submodules(module, name, [*lists, parts.final_norm, *filter(None, [parts.embedding])])
    blocks = _block_names(module, parts)
    if not blocks:
        raise BackboneError(f"{name}: {parts.blocks!r} holds no blocks")
    _require_submodules(module, name, blocks)
    for block in blocks:
        inside = [tap.removesuffix(_INPUT) for tap in parts.taps.values()]
        _require_submodules(module.get_submodule(block), f"{name}.{block}", inside)


def _require_submodules(module: nn.Module, where: str, names: Sequence[str]) -> None:
    existing = {existing for existing, _ in module.named_modules() if existing}
    for name in names:
        if name not in existing:
            raise UnknownNameError(f"part of {where}:", name, sorted(existing))


@torch.inference_mode()
def _widths(
    module: nn.Module,
    name: str,
    parts: Parts,
    first_block: str,
    layout: TokenLayout,
    input_size: int,
    forward: Forward,
    sequence_first: bool,
) -> dict[str, int]:
    """Return the channels of every part, from one run on a black image; ``final`` are the tokens of the last layer."""
    points = {
        tap: (f"{first_block}.{inside}".rstrip("."), inside.endswith(_INPUT))
        for tap, inside in _tap_names(parts).items()
    }
    points["final"] = (parts.final_norm, False)
    if parts.embedding is not None:
        points["embedding"] = (parts.embedding, False)
    seen: dict[str, Any] = {}
    handles = []
    for part_name, (path, is_input) in points.items():
        part = module.get_submodule(path.removesuffix(_INPUT))
        point = TapPoint(part, 0, "input" if is_input else "output")

        def hook(
            module: Any, inputs: Any, output: Any, part_name: str = part_name, point: TapPoint = point
        ) -> None:
            seen[part_name] = point.tokens(inputs, output)

        handles.append(part.register_forward_hook(hook))
    try:
        forward(module, torch.zeros(2, 3, input_size, input_size))
    except Exception as error:  # whatever a module may raise
        raise BackboneError(
            f"{name} does not run on images of {input_size} x {input_size} pixels ({reason(error)})"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    for part_name, (path, _) in points.items():
        shape = list(seen[part_name].shape) if isinstance(seen.get(part_name), Tensor) else None
        tokens = [layout.num_tokens, 2] if sequence_first and part_name != "final" else [2, layout.num_tokens]
        expected = [2] if part_name == "embedding" else tokens
        if shape is None or shape[:-1] != expected:
            got = f"gives {shape}" if part_name in seen else "is not called"
            raise BackboneError(f"{name}: {path!r} {got} for 2 images, expected {[*expected, 'width']}")
    return {part_name: values.shape[-1] for part_name, values in seen.items()}
