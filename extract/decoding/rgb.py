"""Images of any mode as 8-bit RGB. No torch here."""

import hashlib

import numpy as np
import numpy.typing as npt
from PIL.Image import Image, Transpose, fromarray

from featcache.extraction.sources.base import Source
from featcache.extraction.sources.channel_image import ChannelImage
from featcache.extraction.sources.decode import orientation_of
from featcache.extraction.sources.decoded_jpeg import DecodedJpeg
from featcache.extraction.sources.pixels import WHITE, PixelOptions, facts_of, is_clipped, remember, to_8_bit
from featcache.store.errors import DatasetError
from featcache.store.planning import CONTENT_DIGEST_BYTES
from featcache.store.text import reason

_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Formats whose 16-bit images some versions of Pillow open as 32-bit integers."""
_AS_STORED = PixelOptions()


def to_rgb(image: Image, options: PixelOptions = _AS_STORED) -> Image:
    """Convert an image of any mode to 8-bit RGB, as it is stored; drop transparency, and attach facts to the result.

    Pillow alone clips what is deeper than 8 bits: 16-bit greyscale comes out white, floating point black.

    Raises:
        ValueError: the range of the pixels is not known, or the mode has no form in RGB.
    """
    facts = dict(facts_of(image))
    if (orientation := orientation_of(image)) in _TURNS:
        facts["turned"] = orientation
    rgb = image.as_rgb() if isinstance(image, DecodedJpeg) else _flat(image, options, facts)
    remember(rgb, **facts)
    return rgb


def turned_upright(rgb: Image) -> Image:
    """Return an image of `to_rgb` as its EXIF orientation shows it: rotated, mirrored, or as it is."""
    turn = _TURNS.get(facts_of(rgb).get("turned", 1))
    return rgb if turn is None else rgb.transpose(turn)


def rgb_image(source: Source, split: str, row: int) -> Image:
    """Return one image of a dataset as 8-bit RGB, as it is stored, following the dataset's options.

    Images of another number of channels, which those options may ask for, are returned as they are.

    Raises:
        UnavailableError: the image's file is gone or cannot be read.
        DatasetError: the image does not decode, or the range of its pixels is not known.
    """
    image = source.image(split, row)
    if isinstance(image, ChannelImage):
        return image
    try:
        return to_rgb(image, source.pixels)
    except ValueError as error:
        raise DatasetError(f"image {source.splits[split][row].id!r}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # a lazy image decodes here, and decoders raise any error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        image.close()  # otherwise its file stays open: only a finished decoder closes it
        what = f"{type(error).__name__}: {reason(error)}"
        raise DatasetError(
            f"image {source.splits[split][row].id!r} cannot be converted to RGB ({what})"
        ) from error


def pixels_of(image: Image) -> npt.NDArray[np.uint8]:
    """Return the pixels ``[H, W, 3]`` of an RGB image, or ``[H, W, C]`` of one of C channels, writable and without gaps."""
    if isinstance(image, ChannelImage):
        return image.pixels
    if isinstance(image, DecodedJpeg) and image.mode == "RGB":
        return image.pixels
    # A bytearray makes them writable; numpy's own way takes two copies as well, and torch refuses what it gives.
    return np.frombuffer(bytearray(image.tobytes()), np.uint8).reshape(image.height, image.width, 3)


def content_digest(image: Image) -> bytes:
    """First 16 bytes of SHA-256 over width, height and pixels of an RGB image."""
    return digest_of_pixels(pixels_of(image))


def digest_of_pixels(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return the content digest of an image with these pixels ``[H, W, 3]``; see `content_digest`."""
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{width}x{height}\n".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()[:CONTENT_DIGEST_BYTES]


def _flat(image: Image, options: PixelOptions, facts: dict[str, int]) -> Image:
    """Return the pixels as 8-bit RGB, as they are stored."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        # These two formats hold no values of more than 16 bits and no negative ones.
        if image.mode == "I" and getattr(image, "format", None) in _SIXTEEN_BIT_FORMATS:
            values = values.astype(np.uint16)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if options.pixel_range is not None and (white := facts.pop(WHITE, 0)):
            # A given range refers to the values in the file.
            values = np.rint(values * (white / 65535)).astype(np.uint16)
        if options.pixel_range is None and values.dtype == np.uint16:
            facts["deep"] = int(values.max(initial=0)) + 1
        facts["clipped"] = int(is_clipped(values, options.pixel_range))
        return fromarray(to_8_bit(values, options.pixel_range)).convert("RGB")
    if facts.get("deep") and options.pixel_range is not None:
        raise ValueError(
            "its colours have 16 bits, of which the upper 8 are read, so --pixel-range cannot be applied; convert it to 8 bits"
        )
    if image.mode == "RGBX":  # the fourth channel is no transparency, and would go without a word
        facts["channels"] = 1
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the way that Pillow asks for
    if image.mode in ("RGBa", "La"):  # transparency is multiplied into the colors
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    if image.mode in ("RGBA", "LA", "PA"):
        low, _ = image.getchannel("A").getextrema()
        facts["alpha"] = int(low < 255)  # type: ignore[operator]  # one channel has two numbers
    elif "transparency" in image.info:
        facts["alpha"] = 1
    return image.convert("RGB")
