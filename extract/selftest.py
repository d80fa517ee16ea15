"""The self-test at load: features that are silently wrong are worse than none.

It catches what went wrong in other tools: tokens read along the wrong axis, a norm that is not the one the model
uses, registers taken for patches, a tap that is not on the path to the output.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featcache.extract.backbones.base import Backbone
from featcache.extract.contents import default_arrays
from featcache.extract.taps import Taps
from featcache.store.errors import BackboneError

RELATIVE_TOLERANCE = 1e-3


@torch.inference_mode()
def self_test(backbone: Backbone, device: torch.device) -> None:
    """Check the taps of a backbone in fp32, on a few fixed noise images.

    The model's own output must follow from the last tap through the final norm, both must see ``[B, N, D]`` tokens,
    and the features of an image must not depend on its batch.

    Raises:
        BackboneError: they do not; the message says which check failed and by how much.
    """
    generator = torch.Generator().manual_seed(0)
    size = backbone.spec.input_size
    images = torch.randn(3, 3, size, size, generator=generator).to(device)
    taps = {
        "last norm2": backbone.tap_point("norm2", backbone.spec.num_layers - 1).module,
        "final norm": backbone.final_norm,
    }
    own, seen = _record(backbone, taps, "in the forward pass", lambda: backbone.forward(images))
    batch_axis = 1 if backbone.sequence_first else 0
    tokens = backbone.layout.num_prefix_tokens + backbone.layout.num_patches
    for name, axis in (("last norm2", batch_axis), ("final norm", 0)):
        shape = [0, 0, backbone.spec.width]
        shape[axis], shape[1 - axis] = len(images), tokens
        got = list(seen[name][1].shape)
        if got != shape:
            raise _failure(backbone, f"the {name} gives tokens of shape {got}, expected {shape}")
    output, again = _record(
        backbone,
        {"final norm": backbone.final_norm},
        "between the last tap and the output",
        lambda: backbone.output_from_last_tap(*seen["last norm2"]),
    )
    for what, recomputed, recorded in (
        ("the model's output", output, own),
        ("the final norm's output", again["final norm"][1], seen["final norm"][1]),
    ):
        _require_close(backbone, f"{what} recomputed from the last tap", recomputed, recorded)
    with Taps(backbone, default_arrays(backbone)) as pooled:
        together = pooled.forward(images)
        alone = pooled.forward(images[1:2])
    for name, features in alone.items():
        _require_close(
            backbone, f"the {name!r} feature of an image without its batch", features[0], together[name][1]
        )


def _record(
    backbone: Backbone, modules: Mapping[str, nn.Module], where: str, call: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Output of `call`, and input and output of every one of `modules`, which it must run."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    try:
        output = call()
    finally:
        for handle in handles:
            handle.remove()
    for name in modules:
        if name not in seen:
            raise _failure(backbone, f"the {name} is not called {where}")
    return output, seen


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
