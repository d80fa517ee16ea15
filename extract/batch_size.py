"""How many samples go into a forward pass, where nobody said."""

import torch

from featcache.extract.backbones.base import Backbone
from featcache.extract.device import default_batch_size
from featcache.extract.forward import FeatureExtractor
from featcache.store.inventory import Inventory
from featcache.store.spec import CacheSpec

TRIAL_IMAGES = (4, 8)
USABLE_PART = 0.8
"""Of the free memory: what is allocated in pieces never fits exactly."""


def fitting_batch_size(
    backbone: Backbone, device: torch.device, spec: CacheSpec, inventory: Inventory
) -> int:
    """Samples in a forward pass: the device's default, or less where its free memory does not hold that.

    On a CUDA device two small passes tell the memory of an image; what turns out too much all the same is divided
    while the run goes on.

    Args:
        backbone: the backbone, on `device`.
        device: where it runs.
        spec: tells precision and stored type.
        inventory: tells the arrays.
    """
    default = default_batch_size(device)
    if device.type != "cuda":
        return default
    split = next(iter(inventory.splits.values()))
    arrays = [array for array in split.arrays.values() if array.layers]
    extractor = FeatureExtractor(backbone, device, spec.precision, arrays, spec.dtype)
    fewer, more = (_peak_bytes(extractor, device, backbone.spec.input_size, n) for n in TRIAL_IMAGES)
    per_image = (more - fewer) / (TRIAL_IMAGES[1] - TRIAL_IMAGES[0])
    free, _ = torch.cuda.mem_get_info(device)
    # What the allocator keeps for itself is free too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return largest_batch(default, per_image, free)


def largest_batch(default: int, per_image: float, free: int) -> int:
    """The default, halved until so many images of `per_image` bytes take no more than a part of `free` bytes."""
    size = default
    while size > 1 and size * per_image > USABLE_PART * free:
        size //= 2
    return size


def _peak_bytes(extractor: FeatureExtractor, device: torch.device, size: int, images: int) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    extractor.start(torch.zeros(images, 3, size, size, device=device))()
    return torch.cuda.max_memory_allocated(device)
