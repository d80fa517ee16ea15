"""How stored pixel values become 8 bits, and what is remembered of an image that RGB of 8 bits cannot show.

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
AS_STORED, APPLY = "ignore", "apply"
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
    """Number of bits, where the range is given so: 0 to 2^bits - 1, of which the upper 8 bits are taken."""

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
    """How decoded images are read."""

    pixel_range: PixelRange | None = None
    """Range of images of more than 8 bits; by the rule above if None."""
    upright: bool = False
    """Turn an image as its EXIF orientation says; otherwise pixels are taken as they are stored."""


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
    """Whether values lie outside of a range that was given for them."""
    if pixel_range is None or values.dtype in (np.uint8, np.bool_) or not values.size:
        return False
    return bool(values.min() < pixel_range.low or values.max() > pixel_range.high)


def _extent(values: npt.NDArray[Any]) -> str:
    if not values.size:
        return "none"
    return f"{values.min():.6g} to {values.max():.6g}"


FACTS = ("turned", "alpha", "frames", "channels", "clipped", "deep")
"""What is remembered of an image, as whole numbers, 0 if there is nothing to say:

``turned``: its EXIF orientation is another than upright; ``alpha``: transparency is dropped; ``frames``: it has more pages
or frames, of which the first is taken; ``channels``: it has more channels, of which the first ones are taken; ``clipped``:
values lie outside of the pixel range; ``deep``: its largest value plus one, where it has 16 bits and no range was given.
"""


WHITE = "white"
"""Besides `FACTS`: the value that a file itself declares as white, where its pixels were scaled from it to 65535."""


def remember(image: "Image", **facts: int) -> None:
    """Keep facts with an image, by the names of `FACTS`."""
    image.info[_INFO] = {**facts_of(image), **facts}


def facts_of(image: "Image") -> Mapping[str, int]:
    """The facts that are kept with an image."""
    facts = image.info.get(_INFO)
    return facts if isinstance(facts, dict) else {}
