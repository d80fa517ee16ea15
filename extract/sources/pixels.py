"""Convert stored pixel values to 8 bits, and record facts of an image that 8-bit RGB cannot show.

The rule: 8-bit values are taken as they are. 16-bit values count from black at 0 to white at 65535. Every other type
(signed and 32-bit integers, floating point) does not say which value is white, so it is refused unless a
`PixelRange` says it. No torch and no image library here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.store.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

AUTO = "auto"
MAX_BITS = 32
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ENDS = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
_INFO = "featcache"


@dataclass(frozen=True)
class PixelRange:
    """The values that stand for black and white in images of more than 8 bits."""

    low: float
    """Value that is black."""
    high: float
    """Value that is white, above `low`."""
    bits: int | None = None
    """Number of bits if the range was given as such: it is 0 to 2^bits - 1, and the upper 8 bits are taken."""

    @classmethod
    def parse(cls, text: str) -> "PixelRange | None":
        """Read ``auto`` (None), a number of bits such as ``12``, or ``LOW..HIGH`` such as ``0..4095`` or ``-1..1``.

        Raises:
            RequestError: the text is neither.
        """
        if text == AUTO:
            return None
        if text.isascii() and text.isdigit() and 8 <= int(text) <= MAX_BITS:
            return cls(0, 2 ** int(text) - 1, int(text))
        ends = _ENDS.fullmatch(text)
        if ends is not None and -np.inf < (low := float(ends[1])) < (high := float(ends[2])) < np.inf:
            return cls(low, high)
        raise RequestError(
            f"--pixel-range must be auto, a number of bits from 8 to {MAX_BITS}, or LOW..HIGH such as 0..4095; got {text!r}"
        )


@dataclass(frozen=True)
class PixelOptions:
    """Options for reading decoded images."""

    pixel_range: PixelRange | None = None
    """Pixel range of images of more than 8 bits; None applies the rule of this module."""


def to_8_bit(values: npt.NDArray[Any], pixel_range: PixelRange | None) -> npt.NDArray[np.uint8]:
    """Convert pixel values of any shape and numeric type to 8 bits by the rule of this module.

    Values outside of a given range become black or white; `is_clipped` tells whether there are any.

    Raises:
        ValueError: the type does not say which value is white and no range is given, or a value is not finite.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if pixel_range is None:
        if values.dtype == np.uint16:
            return (values >> 8).astype(np.uint8)
        raise ValueError(
            f"its pixels are {values.dtype} with values {_extent(values)}, which does not say what is white; say it with "
            "--pixel-range, such as --pixel-range 12 (bits) or --pixel-range 0..1"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("a pixel is not a finite number")
    if pixel_range.bits is not None and values.dtype.kind in "iu":
        clipped = np.clip(values, 0, min(int(pixel_range.high), np.iinfo(values.dtype).max))
        upper: npt.NDArray[np.uint8] = (clipped >> (pixel_range.bits - 8)).astype(np.uint8)
        return upper
    unit = (values.astype(np.float64) - pixel_range.low) / (pixel_range.high - pixel_range.low)
    return (np.clip(unit, 0, 1) * 255).round().astype(np.uint8)


def is_clipped(values: npt.NDArray[Any], pixel_range: PixelRange | None) -> bool:
    """Return whether any value lies outside of the given range."""
    if pixel_range is None or values.dtype in (np.uint8, np.bool_) or not values.size:
        return False
    return bool(values.min() < pixel_range.low or values.max() > pixel_range.high)


def _extent(values: npt.NDArray[Any]) -> str:
    if not values.size:
        return "none"
    return f"{values.min():.6g} to {values.max():.6g}"


FACTS = ("turned", "alpha", "frames", "channels", "clipped", "deep")
"""Names of the facts recorded for each image, integers that are 0 if the fact does not apply:

``turned``: the EXIF orientation, 2 to 8, if it is not upright; ``alpha``: transparency is dropped; ``frames``: the image has several pages
or frames, and the first is taken; ``channels``: it has further channels besides grey or RGB, which are left out; ``clipped``:
values lie outside of the pixel range; ``deep``: the largest value plus one, for 16-bit images without a given range.
"""


RGB_CHANNELS = 3
WHITE = "white"
"""Fact beside `FACTS`: the white value that a file declares, if its pixels were scaled from that value to 65535."""


def remember(image: "Image", **facts: int) -> None:
    """Attach facts to an image, by the names of `FACTS`."""
    image.info[_INFO] = {**facts_of(image), **facts}


def facts_of(image: "Image") -> Mapping[str, int]:
    """The facts attached to an image."""
    facts = image.info.get(_INFO)
    return facts if isinstance(facts, dict) else {}
