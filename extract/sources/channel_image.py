"""An image of another number of channels than three, as multispectral cameras take them."""

import numpy as np
import numpy.typing as npt
from PIL.Image import Image, fromarray


class ChannelImage(Image):
    """Pixels of any number of channels where images of Pillow are passed on; Pillow itself holds four at most.

    Args:
        pixels: ``[H, W, C]`` uint8, writable and without gaps.
    """

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        self.pixels = pixels
        self._mode = f"{pixels.shape[2]} channels"
        self._size = pixels.shape[1], pixels.shape[0]

    def as_rgb(self) -> Image:
        """Return the first three channels, or the first one as grey, for people to look at."""
        shown = self.pixels[..., :3] if self.pixels.shape[2] >= 3 else self.pixels[..., 0]
        return fromarray(np.ascontiguousarray(shown)).convert("RGB")
