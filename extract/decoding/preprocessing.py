"""A model's preprocessing in two parts: 8-bit pixels on the host, normalization on the device.

A quarter of the bytes of float32 travels between processes and to a GPU, and resizing has two named versions:

- ``pillow``: the steps of the model's library on Pillow's image.
- ``uint8-antialias``: torch's antialiased resize of 8-bit pixels, five times as fast. A pixel differs by at most 2 of 255
  from that of Pillow's passes over rows, then columns, because weights have 16 bits instead of 22. The integer arithmetic
  gives the same pixels with and without vector instructions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from featcache.extraction.sources.pixels import RGB_CHANNELS
from featcache.store.spec import PILLOW, UINT8_ANTIALIAS

Pixels = Image | Tensor
"""An image between two steps: Pillow's, or ``[3, H, W]`` uint8."""
_MODES = {InterpolationMode.BICUBIC: "bicubic", InterpolationMode.BILINEAR: "bilinear"}
"""Filters of which torch has an antialiased form for 8-bit pixels."""
_TO_RGB = ("MaybeConvertMode", "_convert_to_rgb")
"""Names of steps that change nothing, since every image is RGB already."""


@dataclass(frozen=True)
class EightBitTransform:
    """Preprocessing whose steps up to normalization give 8-bit pixels."""

    steps: tuple[Callable[[Any], Any], ...]
    """Resize, crop and the like: an RGB image of Pillow to one of S x S pixels."""
    mean: tuple[float, ...]
    """Mean of each channel, of values from 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, of values from 0 to 1."""
    resize: str = PILLOW
    """``pillow`` or ``uint8-antialias``."""

    def prepare(self, image: Image, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Return the pixels ``[3, S, S]`` uint8 of one image.

        Args:
            image: the RGB image.
            pixels: its pixels ``[H, W, 3]``, writable because torch takes no others.
        """
        return self.finish(self.apply(self.begin(image, pixels), self.steps))

    def begin(self, image: Image, pixels: npt.NDArray[np.uint8]) -> Pixels:
        """Return an image in the form that `apply` takes; arguments as for `prepare`."""
        return image if self.resize == PILLOW else torch.from_numpy(pixels).permute(2, 0, 1)

    def apply(self, values: Pixels, steps: Iterable[Callable[[Any], Any]]) -> Pixels:
        """Apply some steps to an image."""
        for step in steps:
            if isinstance(values, Image):
                values = step(values)
            elif isinstance(step, transforms.Resize):
                values = _resized(values, step)
            elif isinstance(step, transforms.CenterCrop):
                values = step(values)
        return values

    def finish(self, values: Pixels) -> Tensor:
        """Return the pixels ``[3, H, W]`` uint8 of an image after the steps."""
        if isinstance(values, Image):
            return torch.from_numpy(np.array(values)).permute(2, 0, 1)
        return values

    def normalize(self, pixels: Tensor, failed: Sequence[int] = ()) -> Tensor:
        """Return 8-bit pixels as the model takes them.

        Division is by tensors on the device, because torch multiplies by the reciprocal of a plain number on a GPU. So every
        operation is rounded as on a CPU, where the values are those of torchvision's ``ToTensor`` and ``Normalize`` bit for bit.

        Args:
            pixels: ``[B, 3, S, S]`` uint8, on any device.
            failed: rows of images that could not be decoded; their values stay zeros.

        Returns:
            ``[B, 3, S, S]`` float32, contiguous, on the same device.
        """
        white, mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
            for values in ([255.0], self.mean, self.std)
        )
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        values.div_(white).sub_(mean).div_(std)
        if failed:
            values[list(failed)] = 0
        return values

    def resized_by(self, resize: str) -> "EightBitTransform":
        """Return the same preprocessing with another version of resizing, one of `versions`."""
        return replace(self, resize=resize)

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions of resizing that these steps have."""
        of_pillow = (PILLOW,) if len(self.mean) == RGB_CHANNELS else ()  # its images have no other channels
        return (*of_pillow, UINT8_ANTIALIAS) if all(map(_has_8_bit_form, self.steps)) else of_pillow


def in_two_parts(transform: Callable[[Image], Tensor]) -> EightBitTransform | None:
    """Divide torchvision's steps of a model at ``ToTensor``; return None for preprocessing of another form."""
    steps: list[Any] = transform.transforms if isinstance(transform, transforms.Compose) else []
    if len(steps) < 2:
        return None
    *before, to_tensor, normalize = steps
    if not isinstance(to_tensor, transforms.ToTensor) or not isinstance(normalize, transforms.Normalize):
        return None
    mean, std = (tuple(float(value) for value in values) for values in (normalize.mean, normalize.std))
    if len(mean) != len(std):
        return None
    return EightBitTransform(tuple(before), mean, std)


def versions_of(transform: Callable[[Image], Tensor]) -> tuple[str, ...]:
    """Return the versions of resizing that a model's preprocessing has; ``pillow``, its own, is always among them."""
    parts = in_two_parts(transform)
    return (PILLOW,) if parts is None else parts.versions


def with_resize(
    transform: Callable[[Image], Tensor], resize: str
) -> EightBitTransform | Callable[[Image], Tensor]:
    """Return a model's preprocessing with a version of resizing, in two parts where it has these.

    Raises:
        ValueError: the preprocessing has no such version.
    """
    if resize not in versions_of(transform):
        raise ValueError(f"resize must be one of {', '.join(versions_of(transform))}, got {resize!r}")
    parts = in_two_parts(transform)
    return transform if parts is None else parts.resized_by(resize)


def _has_8_bit_form(step: object) -> bool:
    if isinstance(step, transforms.Resize):
        return step.interpolation in _MODES and step.max_size is None and step.antialias is not False
    return (
        isinstance(step, transforms.CenterCrop)
        or type(step).__name__ in _TO_RGB
        or (getattr(step, "__name__", "") in _TO_RGB)
    )


def _resized(pixels: Tensor, step: transforms.Resize) -> Tensor:
    """Resize pixels ``[3, H, W]`` uint8 as a step of torchvision says."""
    height, width = pixels.shape[1:]
    wanted = [step.size] if isinstance(step.size, int) else [int(side) for side in step.size]
    if len(wanted) == 1:
        short, long = wanted[0], int(wanted[0] * max(height, width) / min(height, width))
        wanted = [long, short] if width <= height else [short, long]
    if wanted == [height, width]:
        return pixels
    # torchvision's own function rounds float32 values on processors without AVX2; this one is integer arithmetic everywhere.
    return functional.interpolate(
        pixels[None], size=wanted, mode=_MODES[step.interpolation], antialias=True, align_corners=False
    )[0]
