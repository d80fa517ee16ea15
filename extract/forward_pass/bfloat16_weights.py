"""A backbone whose weights are bfloat16: half the memory, and no casts in the forward pass.

Autocast (``mixed``) keeps weights and the residual stream in float32 and casts the operands of every matrix product. With
bfloat16 weights the residual stream is bfloat16 too, so features are rounded after every block; they are another function of the
image, with a place of their own in a cache's key.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from featcache.devices.precision import BF16
from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.replicas import noise_images
from featcache.store.errors import BackboneError

TOLERANCE = 0.2
"""Largest relative difference of the model's output from that in float32, on noise images. DINOv2 ViT-S/14 gives 0.012; a model that
does not stand bfloat16 gives 1 or NaN."""
CHECK_IMAGES = 2


def in_precision(backbone: Backbone, precision: str) -> Backbone:
    """Return the backbone whose forward pass has a precision.

    Args:
        backbone: the backbone with float32 weights, on its device; it stays as it is.
        precision: one of `featcache.store.spec.PRECISIONS`.

    Returns:
        For ``bf16`` a copy with bfloat16 parameters, which takes float32 images; else the same backbone.

    Raises:
        BackboneError: the backbone cannot run with bfloat16 weights, or gives other features.
    """
    if precision != BF16:
        return backbone
    name = backbone.spec.architecture
    try:
        converted, difference = _converted(backbone)
    except Exception as error:  # a module that mixes types raises what it likes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(
            f"{name} does not run with bfloat16 weights ({reason}); use --precision mixed"
        ) from error
    # Not `difference > ...`: a NaN must not pass.
    if not difference <= TOLERANCE:
        raise BackboneError(
            f"{name} with bfloat16 weights gives other features (its output differs by {difference:.2g} of its length on noise "
            "images); use --precision mixed"
        )
    return converted


def _converted(backbone: Backbone) -> tuple[Backbone, float]:
    """Return a copy with bfloat16 weights and the difference of its output.

    Buffers stay float32 where the model runs with them: the frequencies of rotary embeddings have more digits than bfloat16
    keeps. Some models (BEiT) have parts of their weights in buffers, and multiply only equal types.
    """
    try:
        converted = _copy_in_bfloat16(backbone, with_buffers=False)
        return converted, _difference(backbone, converted)
    except RuntimeError:
        converted = _copy_in_bfloat16(backbone, with_buffers=True)
        return converted, _difference(backbone, converted)


def _copy_in_bfloat16(backbone: Backbone, with_buffers: bool) -> Backbone:
    converted = copy.deepcopy(backbone)
    tensors = [*converted.module.parameters(), *(converted.module.buffers() if with_buffers else ())]
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.bfloat16)

    def cast(module: nn.Module, images: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in images
        )

    converted.module.register_forward_pre_hook(cast)
    load_at = backbone.load_at
    if load_at is not None:
        # Not through `backbone`, whose float32 weights would stay in memory.
        converted.load_at = lambda input_size: _copy_in_bfloat16(load_at(input_size), with_buffers)
    return converted


@torch.inference_mode()
def _difference(backbone: Backbone, converted: Backbone) -> float:
    """Return the largest difference of the outputs, relative to the length of the output in float32."""
    device = next(backbone.module.parameters()).device
    images = noise_images(backbone, device, CHECK_IMAGES)
    wanted, found = (each.forward(images).float().flatten(1) for each in (backbone, converted))
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-12)).max())
