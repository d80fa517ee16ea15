"""The self-test at load: features that are silently wrong are worse than none.

It catches what went wrong in other tools: tokens read along the wrong axis, a norm that is not the one the model
uses, registers taken for patches, a tap that is not on the path to the output.
"""

from typing import Any

import torch
from torch import Tensor, nn

from featcache.extract.backbones.base import Backbone
from featcache.extract.taps import Taps
from featcache.store.errors import BackboneError

RELATIVE_TOLERANCE = 1e-3


@torch.inference_mode()
def self_test(backbone: Backbone, device: torch.device) -> None:
    """Check the taps of a backbone in fp32, on a few fixed noise images.

    The model's own output must follow from the last tap, every tap must see ``[B, N, D]`` tokens, and the features of
    an image must not depend on its batch.

    Raises:
        BackboneError: they do not; the message says which check failed and by how much.
    """
    generator = torch.Generator().manual_seed(0)
    size = backbone.spec.input_size
    images = torch.randn(3, 3, size, size, generator=generator).to(device)
    own, residual, tapped, final = _record(backbone, images)
    batch_axis = 1 if backbone.sequence_first else 0
    tokens = backbone.loaded.num_prefix_tokens + backbone.loaded.num_patches
    for name, tensor, axis in (("last norm2", tapped, batch_axis), ("final norm", final, 0)):
        shape = [0, 0, backbone.spec.width]
        shape[axis], shape[1 - axis] = len(images), tokens
        if list(tensor.shape) != shape:
            raise _failure(
                backbone, f"the {name} gives tokens of shape {list(tensor.shape)}, expected {shape}"
            )
    _require_close(
        backbone,
        "the model's output recomputed from the last tap",
        backbone.output_from_last_tap(residual, tapped),
        own,
    )
    with Taps(backbone, ("cls", "ap")) as taps:
        together = taps.forward(images)
        alone = taps.forward(images[1:2])
    for name, features in alone.items():
        _require_close(
            backbone, f"the features {name!r} of an image without its batch", features[0], together[name][1]
        )


def _record(backbone: Backbone, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Own output, input and output of the last `norm2`, and output of the final norm."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return hook

    last = backbone.norm2(backbone.spec.num_layers - 1)
    handles = [
        last.register_forward_hook(remember("last")),
        backbone.final_norm.register_forward_hook(remember("final")),
    ]
    try:
        own = backbone.forward(images)
    finally:
        for handle in handles:
            handle.remove()
    if seen.keys() != {"last", "final"}:
        raise _failure(backbone, "the last norm2 or the final norm is not called in the forward pass")
    return own, *seen["last"], seen["final"][1]


def _require_close(backbone: Backbone, what: str, got: Tensor, wanted: Tensor) -> None:
    if got.shape != wanted.shape:
        raise _failure(backbone, f"{what} has shape {list(got.shape)}, expected {list(wanted.shape)}")
    scale = wanted.abs().max().item()
    difference = (got - wanted).abs().max().item()
    # Not `difference > ...`: a NaN must fail too.
    if not difference <= RELATIVE_TOLERANCE * scale:
        raise _failure(backbone, f"{what} differs by {difference:.2g} (largest value {scale:.2g})")


def _failure(backbone: Backbone, reason: str) -> BackboneError:
    return BackboneError(
        f"self-test of {backbone.spec.architecture} failed: {reason}. "
        "Its features would be wrong, so nothing was written; please report it with the versions of the model's library."
    )
