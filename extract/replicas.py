"""Copies of a backbone that share its weights, so that passes with hooks of their own can run at the same time."""

import copy

import torch

from featcache.extraction.backbones.base import Backbone


def replica(backbone: Backbone) -> Backbone:
    """Copy a backbone, but not its weights: the modules are new, their parameters and buffers the same tensors.

    Raises:
        Exception: whatever an unusual module raises when it is copied.
    """
    tensors = [*backbone.module.parameters(), *backbone.module.buffers()]
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})


def noise_images(backbone: Backbone, device: torch.device, batch: int) -> torch.Tensor:
    """The same random images ``[B, 3, S, S]`` every time, for comparing passes."""
    size = backbone.spec.input_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
