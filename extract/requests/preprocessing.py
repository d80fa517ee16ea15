"""Options of preprocessing: what is done to an image before it enters the backbone. No torch."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from attrs import Attribute, field, frozen

from featcache.extraction.models.names import ModelName, model_names, resolve_model
from featcache.extraction.models.preprocessing import (
    CENTER,
    CROPS,
    INTERPOLATIONS,
    OWN,
    PAPER,
    PRESETS,
    Preprocessing,
    Size,
    position_method,
    preset,
    size_text,
)
from featcache.extraction.sources.pixels import RGB_CHANNELS
from featcache.store.errors import RequestError
from featcache.store.files import JsonObject
from featcache.store.parameters import one_of, parameter

PREPROCESSING = "preprocessing"
"""Field of a literal request."""
_CHANGES = ("input_size", "crop", "crop_pct", "resize_size", "interpolation", "mean", "std")
"""Fields of `Preprocessing` that have an option of the same name."""
MAX_SIDE = 4096
"""Largest side of an input, pixels. Memory grows with its fourth power, and a wrong digit should not end in a crash."""


def as_input_size(given: str | int | Sequence[int] | None) -> Size | None:
    """Read a size such as ``336`` (a square) or ``224x336`` (height, then width); None stays None.

    Raises:
        RequestError: the text is no size, or a side is out of range.
    """
    if given is None:
        return None
    sides: Sequence[object] = (given,) if isinstance(given, str | int) else tuple(given)
    if isinstance(given, str):
        sides = given.lower().split("x")
    try:
        numbers = [int(str(side)) for side in sides]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise RequestError(
            f"--input-size must be a number of pixels, or HEIGHTxWIDTH such as 224x336, got {given!r}"
        )
    if not all(1 <= number <= MAX_SIDE for number in numbers):
        raise RequestError(f"--input-size must be from 1 to {MAX_SIDE} pixels, got {given!r}")
    return numbers[0], numbers[-1]


def _as_fraction(given: str | float | None) -> float | None:
    """Read the side of the crop over the side of the resized image; None stays None."""
    if given is None:
        return None
    try:
        fraction = float(given)
    except ValueError:
        fraction = math.nan
    if not 0.1 <= fraction <= 1:
        raise RequestError(
            f"--crop-pct must be from 0.1 to 1, where 1 crops nothing from the shorter side, got {given!r}"
        )
    return fraction


def _as_mean(given: str | Sequence[float] | None) -> tuple[float, ...] | None:
    return _per_channel("--mean", given)


def _as_std(given: str | Sequence[float] | None) -> tuple[float, ...] | None:
    return _per_channel("--std", given)


def _per_channel(option: str, given: str | Sequence[float] | None) -> tuple[float, ...] | None:
    """Read numbers, one for each channel; None stays None."""
    if given is None:
        return None
    try:
        numbers = tuple(float(value) for value in (given.split(",") if isinstance(given, str) else given))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise RequestError(
            f"{option} must be three numbers separated by commas, for red, green and blue, got {given!r}"
        )
    return numbers


def _check_mean(request: object, attribute: "Attribute[Any]", mean: tuple[float, ...] | None) -> None:
    if mean is not None and not all(0 <= value <= 1 for value in mean):
        raise RequestError(
            f"--mean must be of values from 0 to 1, got {_listed(mean)}; divide numbers from 0 to 255 by 255"
        )


def _check_std(request: object, attribute: "Attribute[Any]", std: tuple[float, ...] | None) -> None:
    if std is not None and not all(0 < value <= 1 for value in std):
        raise RequestError(
            f"--std must be above 0 and at most 1, got {_listed(std)}; divide numbers from 0 to 255 by 255"
        )


def _check_resize_size(request: object, attribute: "Attribute[Any]", size: int | None) -> None:
    if size is not None and not 1 <= size <= 2 * MAX_SIDE:
        raise RequestError(f"--resize-size must be from 1 to {2 * MAX_SIDE} pixels, got {size}")


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


# Without slots, since a class cannot inherit from two that have them.
@frozen(kw_only=True, slots=False)
class PreprocessingOptions:
    """What is done to an image before it enters the backbone; each option replaces one setting of the preset.

    Raises:
        UnknownNameError: a preset, an interpolation or a way to crop does not exist.
        RequestError: a number is out of range, or options do not go together.
    """

    preprocess: str = field(
        default=OWN,
        validator=one_of("preset of preprocessing", PRESETS),
        metadata=parameter(
            "Preset of preprocessing: own, the model's own evaluation, or paper, that of the runs published in arXiv 2601.09322, which "
            "differs for DINOv2 and MAE (bilinear). The following options each replace one setting of it.",
            "--preprocess",
        ),
    )
    input_size: Size | None = field(
        default=None,
        converter=as_input_size,
        metadata=parameter(
            "Size of the model's input in pixels, a multiple of the patch: 336, or HEIGHTxWIDTH such as 224x336.",
            "--input-size",
            metavar="SIZE",
            default="by preset",
        ),
    )
    crop: str | None = field(
        default=None,
        validator=one_of("way to crop", CROPS),
        metadata=parameter(
            "Way to make an image fit: center cuts the center out, none squashes the whole image, pad adds borders in the mean color "
            "to the whole image.",
            "--crop",
            default="by preset",
        ),
    )
    crop_pct: float | None = field(
        default=None,
        converter=_as_fraction,
        metadata=parameter(
            "Side of the crop over the shorter side of the resized image, such as 0.875.",
            "--crop-pct",
            metavar="FRACTION",
            default="by preset",
        ),
    )
    resize_size: int | None = field(
        default=None,
        validator=_check_resize_size,
        metadata=parameter(
            "Shorter side of the resized image in pixels, from which the input is cropped, such as 256; instead of --crop-pct.",
            "--resize-size",
            metavar="PIXELS",
            default="by preset",
        ),
    )
    interpolation: str | None = field(
        default=None,
        validator=one_of("interpolation", INTERPOLATIONS),
        metadata=parameter(
            f"Filter of the resize: {', '.join(INTERPOLATIONS)}.", "--interpolation", default="by preset"
        ),
    )
    mean: tuple[float, ...] | None = field(
        default=None,
        converter=_as_mean,
        validator=_check_mean,
        metadata=parameter(
            "Mean of red, green and blue that is subtracted from values from 0 to 1, such as 0.5,0.5,0.5.",
            "--mean",
            metavar="R,G,B",
            default="by preset",
        ),
    )
    std: tuple[float, ...] | None = field(
        default=None,
        converter=_as_std,
        validator=_check_std,
        metadata=parameter(
            "Standard deviation of red, green and blue by which values are then divided.",
            "--std",
            metavar="R,G,B",
            default="by preset",
        ),
    )

    def check_preprocessing(self, channels: int = RGB_CHANNELS) -> None:
        """Refuse options that do not go together, or not with images of C = `channels` channels.

        Raises:
            RequestError: they do not.
        """
        for option, numbers in (("--mean", self.mean), ("--std", self.std)):
            if numbers is not None and len(numbers) != channels:
                what = (
                    "three numbers separated by commas, for red, green and blue"
                    if channels == RGB_CHANNELS
                    else f"{channels} numbers separated by commas, one for each channel"
                )
                raise RequestError(f"{option} must be {what}, got {_listed(numbers)!r}")
        if self.crop_pct is not None and self.resize_size is not None:
            raise RequestError(
                "--crop-pct and --resize-size both say how much is cropped; leave one of them out"
            )
        for option, value in (("--crop-pct", self.crop_pct), ("--resize-size", self.resize_size)):
            if value is not None and self.crop not in (None, CENTER):
                raise RequestError(
                    f"{option} is for --crop center; --crop {self.crop} keeps the whole image, so leave {option} out"
                )

    def preprocessing_of(self, name: ModelName) -> Preprocessing:
        """Return the changes to the settings of the library that a model comes from."""
        base = preset(name, self.preprocess)
        changes = self._changes
        if self.input_size not in (None, base.input_size) and self.preprocess == OWN:
            changes["position_embedding"] = base.position_embedding or position_method(name)
        if self.crop not in (None, CENTER) or self.resize_size is not None:
            changes["crop_pct"] = None
        return replace(base, **changes)

    @property
    def changes_preprocessing(self) -> bool:
        """Whether anything but the model's own preprocessing is asked for."""
        return self.preprocess != OWN or bool(self._changes)

    @property
    def _changes(self) -> dict[str, Any]:
        return {name: value for name in _CHANGES if (value := getattr(self, name)) is not None}

    def preprocessing_literal(self, name: ModelName) -> JsonObject:
        """Return the preprocessing as a cache remembers it with a literal request.

        Caches of before there was a choice name none. They have what is called ``paper`` now, so that is left out.
        """
        asked = self.preprocessing_of(name)
        return {} if asked == preset(name, PAPER) else {PREPROCESSING: asked.to_dict()}


def options_for(preprocessing: Preprocessing, name: ModelName) -> str | None:
    """Return the options that ask for a preprocessing, as they are typed; empty if none is needed, None if no options do.

    An alias may have a preprocessing that the library's own name cannot have, so another name of the model may be among them.
    """
    for other in model_names(name.given):
        named = resolve_model(other)
        found = [
            text for which in PRESETS if (text := _options_with(preprocessing, named, which)) is not None
        ]
        if found:
            shortest = min(found, key=len)
            return shortest if named == name else f"--model {other} {shortest}".rstrip()
    return None


def _options_with(preprocessing: Preprocessing, name: ModelName, which: str) -> str | None:
    """Return the options that ask for a preprocessing together with a preset; None if no options do."""
    base = preset(name, which)
    changes = {
        field_name: value
        for field_name in _CHANGES
        if (value := getattr(preprocessing, field_name)) not in (None, getattr(base, field_name))
    }
    try:
        options = PreprocessingOptions(preprocess=which, **changes)
        options.check_preprocessing(RGB_CHANNELS if options.mean is None else len(options.mean))
    except RequestError:
        return None
    if options.preprocessing_of(name) != preprocessing:
        return None
    words = [] if which == OWN else ["--preprocess", which]
    for field_name, value in changes.items():
        words += ["--" + field_name.replace("_", "-"), _typed(field_name, value)]
    return " ".join(words)


def _typed(field_name: str, value: Any) -> str:
    if field_name == "input_size":
        return size_text(value, "")
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
