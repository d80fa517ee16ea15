"""Decoding one image, with an error that names it."""

from pathlib import Path
from typing import IO, TYPE_CHECKING

from featcache.store.errors import DatasetError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2")
)


def decode(file: "str | Path | IO[bytes]", name: object) -> "Image":
    """Decode an image file, in whatever mode it is stored.

    Args:
        file: the path, or the open file.
        name: what errors call it.

    Raises:
        DatasetError: it does not decode.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        lines = str(error).replace(f"'{file}'", "it").splitlines()
        # Pillow shows a buffer by its address, which says nothing.
        reason = "not an image" if lines and "BytesIO" in lines[0] else lines[0] if lines else ""
        raise DatasetError(f"image {name} does not decode ({reason or type(error).__name__})") from None
