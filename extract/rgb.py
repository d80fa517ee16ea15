"""Images of any mode as 8-bit RGB. No torch here."""

import numpy as np
from PIL.Image import Image, fromarray


def to_rgb(image: Image) -> Image:
    """Convert an image of any mode to 8-bit RGB; transparency is dropped.

    Pillow alone clips what is deeper than 8 bits: 16-bit greyscale comes out white, floating point black.

    Raises:
        ValueError: the range of the pixels is not known.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels are neither 8-bit nor 16-bit; convert it to one of these first")
        return fromarray((values // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the way that Pillow asks for
    return image.convert("RGB")
