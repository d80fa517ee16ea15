"""An image of Pillow whose pixels another decoder gave. They become Pillow's own only where a method of Pillow needs them."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image, fromarray


class DecodedJpeg(Image):
    """A decoded JPEG file, in RGB or grey.

    Args:
        pixels: ``[H, W, 3]`` or ``[H, W]``, writable and without gaps.
        info: what Pillow read in the header, EXIF included.
    """

    format = "JPEG"

    def __init__(self, pixels: npt.NDArray[np.uint8], info: dict[str | tuple[int, int], Any]) -> None:
        super().__init__()
        self.pixels = pixels
        self._mode = "RGB" if pixels.ndim == 3 else "L"
        self._size = pixels.shape[1], pixels.shape[0]
        self.info = info

    def load(self) -> Any:
        """Give Pillow the pixels; its methods begin with this call."""
        if self._im is None:
            self.im = fromarray(self.pixels).im
        return super().load()

    def as_rgb(self) -> "DecodedJpeg":
        """Return the same image with three channels."""
        if self.pixels.ndim == 3:
            return self
        return DecodedJpeg(np.repeat(self.pixels[..., None], 3, axis=2), self.info)
