"""Image processors of Hugging Face transformers as torchvision's steps, held to the processor itself pixel by pixel.

The steps are those of the processor's Pillow backend, which every repository was published with or agrees with. A processor that no such
steps agree with is used as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import crop

from featcache.extraction.backbones.transformers_repository import PROCESSORS
from featcache.extraction.backbones.transformers_trace import UnsuitableModelError
from featcache.store.files import JsonObject
from featcache.store.text import reason

LIBRARY = "transformers"
_INTERPOLATION = {
    Image.Resampling.NEAREST: InterpolationMode.NEAREST,
    Image.Resampling.BOX: InterpolationMode.BOX,
    Image.Resampling.BILINEAR: InterpolationMode.BILINEAR,
    Image.Resampling.HAMMING: InterpolationMode.HAMMING,
    Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
    Image.Resampling.LANCZOS: InterpolationMode.LANCZOS,
}
_WHITE = 1 / 255
# Above what float32 rounds, and a tenth of what one step of 255 makes.
_TOLERANCE = 1e-4
# Width and height of the images that tell whether two preprocessings agree, as parts of the input size and pixels: larger and smaller
# ones, of both orientations, with differences that are odd.
_TRIALS = ((1.0, 37, 1.0, 0), (2.0, 1, 1.0, 26), (0.5, 3, 1.0, 9), (1.0, 0, 1.5, 5))


class CenterCrop(transforms.CenterCrop):  # type: ignore[misc]
    """A center crop as transformers does it: an odd difference is rounded down, where torchvision rounds half to even."""

    def forward(self, image: Any) -> Any:
        """Crop an image of Pillow or pixels ``[..., H, W]``; neither side may be smaller than the crop's."""
        height, width = self.size
        if isinstance(image, Tensor):
            rows, columns = image.shape[-2:]
        else:
            columns, rows = image.size
        return crop(image, (rows - height) // 2, (columns - width) // 2, height, width)


class ProcessorTransform:
    """A processor as it is: an RGB image to ``[3, S, S]`` float32."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """Run the processor."""
        values = self._processor(images=image, return_tensors="pt")["pixel_values"]
        return torch.as_tensor(values)[0].to(torch.float32)


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a repository."""

    transform: Callable[[Image.Image], Tensor]
    """RGB image to ``[3, S, S]`` float32."""
    values: JsonObject
    """What it does, for the spec."""
    size: int
    """S, pixels."""
    note: str
    """Why the processor itself is used; empty where torchvision's steps give the same pixels."""


def load_preprocessing(folder: Path, trust_remote_code: bool) -> Preprocessing:
    """Load the processor of a repository and express it as torchvision's steps, if these give the same pixels.

    Args:
        folder: the files of the repository.
        trust_remote_code: whether the repository's own code may run.

    Raises:
        UnsuitableModelError: there is no processor, or images of one size are not what it gives.
    """
    if not any((folder / file).is_file() for file in PROCESSORS):
        raise UnsuitableModelError(
            f"has no image processor ({' or '.join(PROCESSORS)}), so nothing tells how its images are prepared"
        )
    processor = _load_processor(folder, trust_remote_code)
    itself = ProcessorTransform(processor)
    size = _output_size(itself)
    steps = _steps_of(processor, size)
    if steps is not None:
        transform = transform_of(steps)
        if all(_agree(transform, itself, image) for image in _trial_images(size)):
            return Preprocessing(transform, steps, size, "")
    name = type(processor).__name__
    values = {
        "library": LIBRARY,
        "processor": _plain(processor.to_dict()),
        "backend": str(getattr(processor, "backend", "")),
        "input_size": [3, size, size],
    }
    return Preprocessing(
        itself,
        values,
        size,
        f"images are prepared by the repository's own {name}, since no usual resize, crop and normalization give its pixels",
    )


def transform_of(values: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Make the preprocessing that a spec describes.

    Args:
        values: `Preprocessing.values` of steps, not of a processor that is used as it is.
    """
    steps: list[Any] = []
    if values["resize"] is not None:
        sides = values["resize"] if isinstance(values["resize"], int) else tuple(values["resize"])
        steps.append(transforms.Resize(sides, InterpolationMode(values["interpolation"])))
    if values["crop"] is not None:
        steps.append(CenterCrop(tuple(values["crop"])))
    normalize = transforms.Normalize(values["mean"], values["std"])
    composed: Callable[[Image.Image], Tensor] = transforms.Compose([*steps, transforms.ToTensor(), normalize])
    return composed


def _load_processor(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(
            str(folder), backend="pil", trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the library raises many kinds
        raise UnsuitableModelError(
            f"has an image processor that cannot be loaded ({reason(error)})"
        ) from error


def _output_size(transform: ProcessorTransform) -> int:
    """Return the side of the images that a processor gives, whatever it is given."""
    shapes = []
    for width, height in ((97, 64), (60, 103)):
        image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
        try:
            shapes.append(tuple(transform(image).shape))
        except Exception as error:
            raise UnsuitableModelError(
                f"has an image processor that does not run ({reason(error)})"
            ) from error
    if shapes[0] != shapes[1]:
        raise UnsuitableModelError(
            "has an image processor that gives images of different sizes to images of different shapes "
            f"({[*shapes[0]]} and {[*shapes[1]]}), and a cache holds one number of patches"
        )
    (shape,) = {*shapes}
    if len(shape) != 3 or shape[0] != 3:
        raise UnsuitableModelError(
            f"has an image processor that gives {[*shape]} for an image, expected [3, S, S]"
        )
    if shape[1] != shape[2]:
        raise UnsuitableModelError(
            f"takes {shape[1]} x {shape[2]} pixels, and only square inputs are supported"
        )
    return int(shape[1])


def _steps_of(processor: Any, size: int) -> JsonObject | None:
    """Return a processor's settings as `transform_of` takes them; None where they are of another form."""

    def on(name: str, default: bool = False) -> bool:
        value = getattr(processor, name, None)
        return default if value is None else bool(value)

    if not on("do_rescale") or abs(getattr(processor, "rescale_factor", 0.0) - _WHITE) > 1e-9 or on("do_pad"):
        return None
    resize: int | list[int] | None = None
    resample = getattr(processor, "resample", None)
    filter_ = None if resample is None else _INTERPOLATION.get(resample)
    if on("do_resize"):
        sides = _sides(getattr(processor, "size", None))
        if sides.keys() == {"shortest_edge"}:
            resize = sides["shortest_edge"]
        elif sides.keys() == {"height", "width"}:
            resize = [sides["height"], sides["width"]]
        if resize is None or filter_ is None:
            return None
    crop_to: list[int] | None = None
    if on("do_center_crop"):
        sides = _sides(getattr(processor, "crop_size", None))
        if sides.keys() != {"height", "width"}:
            return None
        crop_to = [sides["height"], sides["width"]]
    smallest = resize if isinstance(resize, int) else min(resize or [0])
    if smallest < size:
        return None  # the crop would have to fill its border
    channels = {"mean": "image_mean", "std": "image_std"} if on("do_normalize") else {}
    statistics = {field: [*map(float, getattr(processor, name))] for field, name in channels.items()}
    if any(len(values) != 3 for values in statistics.values()):
        return None
    return {
        "library": LIBRARY,
        "resize": resize,
        "interpolation": None if filter_ is None else filter_.value,
        "crop": crop_to,
        "input_size": [3, size, size],
        **{"mean": [0.0] * 3, "std": [1.0] * 3, **statistics},
    }


def _sides(size: Any) -> dict[str, int]:
    """Return the sides that a processor's size states."""
    if size is None:
        return {}
    stated = {name: size[name] for name in size} if isinstance(size, Mapping) else vars(size)
    return {name: int(value) for name, value in stated.items() if value is not None}


def _trial_images(size: int) -> list[Image.Image]:
    noise = np.random.default_rng(0)
    images = []
    for wide, more_wide, high, more_high in _TRIALS:
        shape = (int(size * high) + more_high, int(size * wide) + more_wide, 3)
        # Noise alone says little of a resize that averages it away.
        ramp = np.linspace(0, 200, shape[0] * shape[1] * 3).reshape(shape)
        images.append(Image.fromarray((ramp + noise.integers(0, 56, shape)).astype(np.uint8)))
    return images


def _agree(
    transform: Callable[[Image.Image], Tensor], itself: ProcessorTransform, image: Image.Image
) -> bool:
    own, theirs = transform(image), itself(image)
    return own.shape == theirs.shape and bool((own - theirs).abs().max() <= _TOLERANCE)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | float | str | None):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return str(value)
