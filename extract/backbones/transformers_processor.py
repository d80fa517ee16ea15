"""Image processors of Hugging Face transformers as torchvision's steps, held to the processor itself pixel by pixel.

The steps are those of the processor's Pillow backend, which every repository was published with or agrees with. A processor that no such
steps agree with is used as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import crop

from featcache.extraction.backbones.transformers_repository import PROCESSORS
from featcache.extraction.backbones.transformers_trace import UnsuitableModelError
from featcache.extraction.models.preprocessing import (
    CENTER,
    NONE,
    Preprocessing,
    Settings,
    Size,
    crop_fraction,
)
from featcache.store.errors import RequestError
from featcache.store.files import JsonObject
from featcache.store.text import reason

LIBRARY = "transformers"
_INTERPOLATIONS = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BOX: "box",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.HAMMING: "hamming",
    Image.Resampling.BICUBIC: "bicubic",
    Image.Resampling.LANCZOS: "lanczos",
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
    """A processor as it is: an RGB image to ``[3, H, W]`` float32."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        """Run the processor."""
        values = self._processor(images=image, return_tensors="pt")["pixel_values"]
        return torch.as_tensor(values)[0].to(torch.float32)


@dataclass(frozen=True)
class LoadedProcessor:
    """The preprocessing of a repository, with the changes that were asked for."""

    transform: Callable[[Image.Image], Tensor]
    """RGB image to ``[3, H, W]`` float32."""
    values: JsonObject
    """What it does, for the spec: in timm's terms, or all settings of a processor that is used as it is."""
    size: Size
    own_size: Size
    """The size without changes."""
    note: str
    """Why the processor itself is used; empty where torchvision's steps give the same pixels."""


def load_preprocessing(
    folder: Path, trust_remote_code: bool, changes: Preprocessing, name: str
) -> LoadedProcessor:
    """Load the processor of a repository and express it as torchvision's steps, if these give the same pixels.

    Args:
        folder: the files of the repository.
        trust_remote_code: whether the repository's own code may run.
        changes: changes to the processor's settings.
        name: of the model, for errors.

    Raises:
        RequestError: the changes do not go together with the processor's settings.
        UnsuitableModelError: there is no processor, or images of one size are not what it gives.
    """
    if not any((folder / file).is_file() for file in PROCESSORS):
        raise UnsuitableModelError(
            f"has no image processor ({' or '.join(PROCESSORS)}), so nothing tells how its images are prepared"
        )
    processor = _load_processor(folder, trust_remote_code)
    itself = ProcessorTransform(processor)
    size = _output_size(itself)
    own = _settings_of(processor, size)
    if own is not None and all(
        _agree(transform_of(_values(own)), itself, image) for image in _trial_images(size)
    ):
        settings = own.changed(changes, name)
        values = _values(settings)
        return LoadedProcessor(transform_of(values), values, settings.input_size, size, "")
    return _as_it_is(processor, size, changes, name)


def transform_of(values: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Make the preprocessing that a spec describes.

    Args:
        values: as the spec has them, but not of a processor that is used as it is.
    """
    config = {name: value for name, value in values.items() if name != "library"}
    composed = timm.data.create_transform(**config, is_training=False)
    composed.transforms = [
        CenterCrop(step.size) if type(step) is transforms.CenterCrop else step for step in composed.transforms
    ]
    transform: Callable[[Image.Image], Tensor] = composed
    return transform


def _values(settings: Settings) -> JsonObject:
    """Return settings as a spec has them."""
    plain = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in settings.for_timm().items()
    }
    return {"library": LIBRARY, **plain}


def _as_it_is(processor: Any, size: Size, changes: Preprocessing, name: str) -> LoadedProcessor:
    """Return a processor that no usual steps agree with; of its settings the size alone can be changed."""
    kind, own_size = type(processor).__name__, size
    asked = {field: value for field, value in changes.to_dict().items() if field != "position_embedding"}
    if asked:
        height, width = changes.input_size or size
        fixed = _sides(getattr(processor, "size", None)).keys() == {"height", "width"}
        if asked.keys() != {"input_size"} or not fixed or bool(getattr(processor, "do_center_crop", None)):
            raise RequestError(
                f"{name} comes with an image processor ({kind}) that is used as it is, so --input-size, --interpolation and the "
                "like cannot change it; leave them out"
            )
        if (height, width) != size:
            processor.size = type(processor.size)(height=height, width=width)
            size = _output_size(ProcessorTransform(processor))
    values = {
        "library": LIBRARY,
        "processor": _plain(processor.to_dict()),
        "backend": str(getattr(processor, "backend", "")),
        "input_size": [3, *size],
    }
    return LoadedProcessor(
        ProcessorTransform(processor),
        values,
        size,
        own_size,
        f"images are prepared by the repository's own {kind}, since no usual resize, crop and normalization give its pixels",
    )


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


def _output_size(transform: ProcessorTransform) -> Size:
    """Return height and width of the images that a processor gives, whatever it is given."""
    shapes = []
    for width, height in ((97, 64), (60, 103)):
        image = Image.fromarray(np.zeros((height, width, 3), np.uint8))
        try:
            shapes.append(tuple(transform(image).shape))
        except Exception as error:
            raise UnsuitableModelError(
                f"has an image processor that does not run ({reason(error)})"
            ) from error
    shape = shapes[0]
    if shape != shapes[1]:
        raise UnsuitableModelError(
            "has an image processor that gives images of different sizes to images of different shapes "
            f"({[*shapes[0]]} and {[*shapes[1]]}), and a cache holds one number of patches"
        )
    if len(shape) != 3 or shape[0] != 3:
        raise UnsuitableModelError(
            f"has an image processor that gives {[*shape]} for an image, expected [3, H, W]"
        )
    return int(shape[1]), int(shape[2])


def _settings_of(processor: Any, size: Size) -> Settings | None:
    """Return a processor's settings; None where they are of another form."""

    def on(name: str) -> bool:
        return bool(getattr(processor, name, None))

    filter_ = _INTERPOLATIONS.get(getattr(processor, "resample", None))  # type: ignore[arg-type]
    stated = _sides(getattr(processor, "size", None))
    if stated.keys() == {"shortest_edge"}:
        mode, resized = CENTER, (stated["shortest_edge"],) * 2
    elif stated.keys() == {"height", "width"}:
        mode, resized = NONE, (stated["height"], stated["width"])
    else:
        return None
    cropped = _sides(getattr(processor, "crop_size", None)) if on("do_center_crop") else {}
    usual = (
        on("do_resize")
        and on("do_rescale")
        and abs(getattr(processor, "rescale_factor", 0.0) - _WHITE) <= 1e-9
        and not on("do_pad")
        and filter_ is not None
        and (cropped.keys() == {"height", "width"} or (mode == NONE and not on("do_center_crop")))
    )
    # A smaller image would have to be filled up, and timm divides both sides by one fraction.
    if not usual or resized[0] < size[0] or resized[0] * size[1] != resized[1] * size[0]:
        return None
    assert filter_ is not None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if on("do_normalize"):
        mean, std = (tuple(map(float, getattr(processor, name))) for name in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3:
        return None
    return Settings(size, filter_, mode, crop_fraction(size[0], resized[0]), mean, std)


def _sides(size: Any) -> dict[str, int]:
    """Return the sides that a processor's size states."""
    if size is None:
        return {}
    stated = {name: size[name] for name in size} if isinstance(size, Mapping) else vars(size)
    return {name: int(value) for name, value in stated.items() if value is not None}


def _trial_images(size: Size) -> list[Image.Image]:
    noise = np.random.default_rng(0)
    images = []
    for wide, more_wide, high, more_high in _TRIALS:
        shape = (int(size[0] * high) + more_high, int(size[1] * wide) + more_wide, 3)
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
