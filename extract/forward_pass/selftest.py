"""The self-test at load: features that are silently wrong are worse than none.

It catches what went wrong in other tools: tokens read along the wrong axis, a norm that is not the one the model
uses, registers taken for patches, a tap that is not on the path to the output.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from featcache.devices.float32 import exact_float32
from featcache.extraction.backbones.base import Backbone, Check, TapPoint
from featcache.store.errors import BackboneError

RELATIVE_TOLERANCE = 1e-3
# Far above what rounding does, and small enough for no layer to saturate.
_DISTURBANCE = 0.5
_EFFECT = 1e-6

Hook = Callable[..., Any]


@torch.inference_mode()
def self_test(backbone: Backbone, device: torch.device) -> None:
    """Check the taps of a backbone in fp32, on a few fixed noise images.

    Every tap of every block must be run once and see ``[B, N, D]`` tokens. In the last block the taps must follow from
    each other where the block's form is known; elsewhere they must come in the right order and disturbing them must
    change what the block gives. What the last block gives must give the tokens of the last layer, these must give the
    model's own output, and the features of an image must not depend on its batch.

    Raises:
        BackboneError: they do not; the message says which check failed and by how much.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, backbone.spec.channels, *backbone.spec.image_size, generator=generator).to(device)
    with exact_float32():  # else batches would seem to differ
        together = _record(backbone, images)
        _require_shapes(backbone, together, len(images))
        _require_block(backbone, together)
        _require_output(backbone, together, images)
        alone = _record(backbone, images[1:2])
    for name, values in alone.compared(backbone).items():
        wanted = together.compared(backbone)[name][1]
        _require_close(backbone, Check(f"{name} of an image without its batch", values[0], wanted))


@dataclass
class _Recording:
    """What one forward pass showed."""

    output: Tensor
    shapes: dict[tuple[str, int], list[tuple[int, ...]]] = field(default_factory=dict)
    """By tap and block, of every call."""
    order: list[str] = field(default_factory=list)
    """The taps of the last block in the order in which they ran."""
    last: dict[str, Tensor] = field(default_factory=dict)
    """What the taps of the last block saw."""
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    """What the last block was called with."""
    final: list[Tensor] = field(default_factory=list)
    """What `final_norm` gave, call by call."""
    embedding: Tensor | None = None

    def compared(self, backbone: Backbone) -> dict[str, Tensor]:
        """What must not depend on the batch, ``[B, ...]``."""
        last = {
            f"{tap} of the last block": _batch_first(backbone, tokens) for tap, tokens in self.last.items()
        }
        return {**last, "the last layer's tokens": self.final[-1], "the model's output": self.output}


def _record(backbone: Backbone, images: Tensor) -> _Recording:
    """Run the backbone once with hooks on everything that is tapped."""
    recording = _Recording(torch.empty(0))
    last = backbone.spec.num_layers - 1

    def watch(tap: str, block: int, point: TapPoint) -> Hook:
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            tokens = point.tokens(inputs, output)
            if not isinstance(tokens, Tensor):
                raise _failure(
                    backbone, f"{tap} of block {block} gives {type(tokens).__name__}, not a tensor"
                )
            recording.shapes.setdefault((tap, block), []).append(tuple(tokens.shape))
            if block == last:
                recording.order.append(tap)
                recording.last[tap] = tokens.clone()

        return hook

    def remember_call(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        recording.arguments = (inputs, named)

    def remember_final(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        recording.final.append(output[0] if isinstance(output, tuple) else output)

    points = {
        (tap, block): backbone.tap_point(tap, block) for block in range(last + 1) for tap in backbone.taps
    }
    with _hooks() as handles:
        handles.append(
            points["block", last].module.register_forward_pre_hook(remember_call, with_kwargs=True)
        )
        handles += [
            point.module.register_forward_hook(watch(*place, point)) for place, point in points.items()
        ]
        handles.append(backbone.final_norm.register_forward_hook(remember_final))
        if (embedding := backbone.embedding_point) is not None:

            def remember_embedding(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
                recording.embedding = embedding.tokens(inputs, output)

            handles.append(embedding.module.register_forward_hook(remember_embedding))
        recording.output = backbone.forward(images)
    return recording


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _require_shapes(backbone: Backbone, recording: _Recording, batch: int) -> None:
    """Everything that is tapped runs once and sees the tokens that it should."""
    num_tokens = backbone.layout.num_tokens
    leading = [num_tokens, batch] if backbone.sequence_first else [batch, num_tokens]
    for block in range(backbone.spec.num_layers):
        for tap in backbone.taps:
            what = f"{tap} of block {block}"
            shapes = recording.shapes.get((tap, block), [])
            if len(shapes) != 1:
                raise _failure(backbone, f"{what} runs {len(shapes)} times in a forward pass, expected once")
            wanted = (*leading, backbone.tap_point(tap, block).width)
            if shapes[0] != wanted:
                raise _failure(
                    backbone, f"{what} has tokens of shape {list(shapes[0])}, expected {list(wanted)}"
                )
    if len(recording.final) != 1:
        raise _failure(
            backbone, f"the final norm runs {len(recording.final)} times in a forward pass, expected once"
        )
    wanted = (batch, num_tokens, backbone.spec.width)
    if tuple(recording.final[0].shape) != wanted:
        got = list(recording.final[0].shape)
        raise _failure(backbone, f"the final norm gives tokens of shape {got}, expected {list(wanted)}")
    if (point := backbone.embedding_point) is not None:
        shape = None if recording.embedding is None else list(recording.embedding.shape)
        if shape != [batch, point.width]:
            raise _failure(backbone, f"the embedding has shape {shape}, expected {[batch, point.width]}")


def _require_block(backbone: Backbone, recording: _Recording) -> None:
    """The taps of the last block are what they are said to be."""
    last = backbone.spec.num_layers - 1
    positional, named = recording.arguments
    entered = next(value for value in (*positional, *named.values()) if isinstance(value, Tensor))
    checks = backbone.block_checks(last, entered, recording.last)
    for check in checks:
        _require_close(backbone, check)
    if checks:
        return
    order = [tap for tap in recording.order if tap in ("norm1", "attn", "norm2", "mlp")]
    usual = sorted(order, key=("norm1", "attn", "norm2", "mlp").index)
    if order != usual:
        raise _failure(backbone, f"the taps of the last block run in the order {order}, expected {usual}")
    for tap in order:
        _require_effect(backbone, recording, tap)


def _require_effect(backbone: Backbone, recording: _Recording, tap: str) -> None:
    """Disturbing a tap of the last block must change what the block gives."""
    last = backbone.spec.num_layers - 1
    point, block = backbone.tap_point(tap, last), backbone.tap_point("block", last)
    arguments, named = recording.arguments
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(recording.last[tap].shape, generator=generator).to(recording.last[tap].device)

    def disturbed(values: Any) -> Any:
        if isinstance(values, tuple):
            return (disturbed(values[0]), *values[1:])
        return values + _DISTURBANCE * noise * values.abs().mean()

    seen: list[Tensor] = []
    with _hooks() as handles:
        if point.side == "input":
            handles.append(point.module.register_forward_pre_hook(lambda module, inputs: disturbed(inputs)))
        else:
            handles.append(
                point.module.register_forward_hook(lambda module, inputs, output: disturbed(output))
            )
        handles.append(
            block.module.register_forward_hook(
                lambda module, inputs, output: seen.append(block.tokens(inputs, output))
            )
        )
        block.module(*arguments, **named)
    own = recording.last["block"]
    if not (seen[0] - own).abs().max() > _EFFECT * own.abs().max():
        raise _failure(backbone, f"{tap} of the last block has no effect on what the block gives")


def _require_output(backbone: Backbone, recording: _Recording, images: Tensor) -> None:
    """From the last block to the tokens of the last layer, and from there to the model's own output."""
    final = recording.final[0]
    from_block = backbone.final_tokens(_batch_first(backbone, recording.last["block"]))
    _require_close(
        backbone, Check("the last layer's tokens, recomputed from the last block,", from_block, final)
    )
    output = backbone.output_from_final(final)
    if output is not None:
        check = Check(
            "the model's output, recomputed from the last layer's tokens,", output, recording.output
        )
        _require_close(backbone, check)
    else:
        _require_final_effect(backbone, recording, images)
    embedding, projection = recording.embedding, backbone.projection
    if embedding is not None:
        projected = embedding if projection is None else embedding @ projection
        if projected.shape == recording.output.shape:
            _require_close(
                backbone,
                Check("the model's output, recomputed from the embedding,", projected, recording.output),
            )


def _require_final_effect(backbone: Backbone, recording: _Recording, images: Tensor) -> None:
    """Where the head is not known: disturbing the tokens of the last layer must change the model's output."""

    def disturb(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (disturb(module, inputs, output[0]), *output[1:])
        return output + _DISTURBANCE * output.abs().mean() * torch.ones_like(output).cumsum(-1).sin()

    with _hooks() as handles:
        handles.append(backbone.final_norm.register_forward_hook(disturb))
        output = backbone.forward(images)
    if not (output - recording.output).abs().max() > _EFFECT * recording.output.abs().max():
        raise _failure(backbone, "the tokens of the last layer have no effect on the model's output")


def _batch_first(backbone: Backbone, tokens: Tensor) -> Tensor:
    """``[B, N, D]``, whatever order the tokens have inside the blocks."""
    return tokens.transpose(0, 1) if backbone.sequence_first else tokens


def _require_close(backbone: Backbone, check: Check) -> None:
    got, wanted = check.recomputed, check.recorded
    if got.shape != wanted.shape:
        raise _failure(backbone, f"{check.what} has shape {list(got.shape)}, expected {list(wanted.shape)}")
    scale = wanted.abs().max().item()
    difference = (got - wanted).abs().max().item()
    # Not `difference > ...`: a NaN must fail too.
    if not difference <= RELATIVE_TOLERANCE * scale:
        raise _failure(backbone, f"{check.what} differs by {difference:.2g} (largest value {scale:.2g})")


def _failure(backbone: Backbone, reason: str) -> BackboneError:
    return BackboneError(
        f"self-test of {backbone.spec.architecture} failed: {reason}. "
        "Its features would be wrong, so nothing was written; please report it with the versions of the model's library."
    )
