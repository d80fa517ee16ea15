"""How many samples go into a forward pass, where nobody said."""

from collections.abc import Callable
from math import prod

import torch

from featcache.devices.memory import free_memory
from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.capacity import default_batch_size
from featcache.extraction.forward_pass.encoding import computed_dtype
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.forward_pass.view_passes import by_view
from featcache.extraction.running.writing import WAITING
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
    arrays = by_view(split.arrays.values())
    backbones = {name: _of_view(backbone, inventory, name) for name in arrays}
    pixels = {name: prod(each.spec.image_size) for name, each in backbones.items()}
    largest = max(arrays, key=pixels.__getitem__)
    dtype = computed_dtype(spec.dtype)
    extractor = FeatureExtractor(backbones[largest], device, spec.precision, arrays[largest], dtype)
    shape = backbone.spec.channels, *backbones[largest].spec.image_size
    # The images of batches whose features are awaited stay on the device, those of the next one are there already, and
    # while its parts are joined they are there twice.
    waiting = (WAITING + 2) * backbone.spec.channels * sum(pixels.values()) * torch.float32.itemsize
    return largest_batch(
        default,
        waiting,
        lambda images: _peak_bytes(extractor, device, shape, images),
        lambda: free_memory(device),
    )


def largest_batch(
    default: int, waiting_bytes: int, peak_bytes: Callable[[int], int], free_bytes: Callable[[], int]
) -> int:
    """The default, halved until a batch takes no more than a part of the free memory.

    Args:
        default: samples at most.
        waiting_bytes: what an image takes on the device besides its pass.
        peak_bytes: runs a pass of so many images and returns the most bytes that were allocated.
        free_bytes: bytes that are free on the device when no pass runs.
    """
    few, many = TRIAL_IMAGES
    # The passes first: what libraries allocate once is then taken already.
    few_bytes, many_bytes = (peak_bytes(images) for images in TRIAL_IMAGES)
    per_image = waiting_bytes + (many_bytes - few_bytes) / (many - few)
    usable, size = USABLE_PART * free_bytes(), default
    while size > 1 and size * per_image > usable:
        size //= 2
    return size


def _peak_bytes(extractor: FeatureExtractor, device: torch.device, size: tuple[int, ...], images: int) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    extractor.start(torch.zeros(images, *size, device=device))()
    return torch.cuda.max_memory_allocated(device)


def _of_view(backbone: Backbone, inventory: Inventory, name: str) -> Backbone:
    """Return the backbone at the input size of a view, which has an empty name if it is the plain one."""
    size = inventory.views[name].input_size if name else None
    return backbone if size is None else backbone.at_size(size)
