"""Images in arrays: pixels with channels last or first, or the bytes of image files.

The form of an array is checked when it is opened, so no run begins with arrays that hold no images.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.decode import decode
from featcache.extraction.sources.pixels import RGB_CHANNELS, PixelRange, is_clipped, remember, to_8_bit
from featcache.store.errors import DatasetError

if TYPE_CHECKING:
    from PIL.Image import Image

Array = npt.NDArray[Any]
CHANNELS = (1, 3, 4)
_LOOKED_AT = 16
"""Number of images of an array that are sampled to find the range of its values."""
_EIGHT_BIT = (np.dtype(np.uint8), np.dtype(np.bool_))


def image_notes(
    images: Any, where: str, pixel_range: PixelRange | None, channels: int = RGB_CHANNELS
) -> list[str]:
    """Return notes on the images in an array ``[N, ...]``; `channels` is the number of channels that a backbone takes.

    Raises:
        DatasetError: the array has no form of images, or the range of its values is not known.
    """
    shape, dtype = tuple(images.shape), images.dtype
    if len(shape) == 1 and dtype.kind in "OSV" and dtype.names is None:
        return []
    if len(shape) not in (3, 4) or dtype.kind not in "buif" or 0 in shape[1:]:
        raise DatasetError(
            f"{where} is {list(shape)} {dtype}; images must be [N, H, W] or [N, H, W, C] of numbers, or [N] with the bytes of "
            "an image file each"
        )
    if channels != RGB_CHANNELS:
        return _require_channels(images, where, pixel_range, channels)
    if len(shape) == 4 and _channels(shape[1:]) is None:
        raise DatasetError(
            f"{where} is {list(shape)}; an image has {', '.join(map(str, CHANNELS))} channels, last or first: choose some and "
            "store them as [N, H, W, C], or give --channels C with weights that were trained on C channels"
        )
    notes = []
    if len(shape) == 4 and _channels(shape[1:]) == 4:
        notes.append(f"{where}: of 4 channels the last is taken for transparency and left out")
    if dtype not in _EIGHT_BIT and pixel_range is None and shape[0]:
        notes += _range_notes(images, where)
    return notes


def _require_channels(images: Any, where: str, pixel_range: PixelRange | None, channels: int) -> list[str]:
    """Return notes on an array whose images must have C = `channels` channels.

    Raises:
        DatasetError: they have another number, or the range of the values is not known.
    """
    shape = tuple(images.shape)
    if (channels not in (shape[-1], shape[1])) if len(shape) == 4 else channels != 1:
        raise DatasetError(
            f"{where} is {list(shape)}; --channels {channels} needs images [N, H, W, {channels}] or [N, {channels}, H, W]"
        )
    ranged = images.dtype not in _EIGHT_BIT and pixel_range is None and shape[0]
    return _range_notes(images, where) if ranged else []


def to_channels(pixels: Array, where: str, pixel_range: PixelRange | None, channels: int) -> "Image":
    """Return one image of C = `channels` channels from its pixels ``[H, W, C]`` or ``[C, H, W]``, or ``[H, W]`` for one channel.

    Raises:
        DatasetError: the pixels have another number of channels, or their range is not known.
    """
    from featcache.extraction.sources.channel_image import ChannelImage  # Pillow

    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.ndim == 2 and channels == 1:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[-1] != channels and pixels.shape[0] == channels:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 3 or pixels.shape[-1] != channels or not pixels.size:
        raise DatasetError(
            f"image {where} is {list(pixels.shape)} {pixels.dtype}, which is no image of --channels {channels}"
        )
    facts = {"clipped": int(is_clipped(pixels, pixel_range))}
    if pixels.dtype == np.uint16 and pixel_range is None:
        facts["deep"] = int(pixels.max()) + 1
    try:
        image = ChannelImage(np.array(to_8_bit(pixels, pixel_range), order="C"))
    except ValueError as error:
        raise DatasetError(f"image {where}: {error}") from None
    if any(facts.values()):
        remember(image, **facts)
    return image


def to_image(pixels: Array, where: str, pixel_range: PixelRange | None = None) -> "Image":
    """Return one image from its pixels ``[H, W]``, or with channels last or first.

    Raises:
        DatasetError: the pixels have no form of an image, or their range is not known.
    """
    from PIL import Image

    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.ndim == 3:
        channels = _channels(pixels.shape)
        if channels is not None and pixels.shape[-1] not in CHANNELS:
            pixels = np.moveaxis(pixels, 0, -1)
        if channels == 1:
            pixels = pixels[..., 0]
    if (
        pixels.ndim not in (2, 3)
        or (pixels.ndim == 3 and pixels.shape[-1] not in CHANNELS)
        or not pixels.size
    ):
        raise DatasetError(f"image {where} is {list(pixels.shape)} {pixels.dtype}, which is no image")
    facts: dict[str, int] = {}
    # 16-bit grayscale stays a mode of Pillow, and is scaled together with all other images.
    scaled = pixels.dtype not in _EIGHT_BIT and (pixels.dtype != np.uint16 or pixels.ndim == 3)
    if scaled and pixels.dtype == np.uint16 and pixel_range is None:
        facts["deep"] = int(pixels.max()) + 1
    if scaled:
        facts["clipped"] = int(is_clipped(pixels, pixel_range))
    try:
        if scaled or pixels.dtype == np.bool_:
            pixels = to_8_bit(pixels, pixel_range)
        image = Image.fromarray(np.ascontiguousarray(pixels))
    except (TypeError, KeyError):
        raise DatasetError(
            f"image {where} is {list(pixels.shape)} {pixels.dtype}, which is no image"
        ) from None
    except ValueError as error:
        raise DatasetError(f"image {where}: {error}") from None
    if any(facts.values()):
        remember(image, **facts)
    return image


def decode_row(value: Any, where: str) -> "Image":
    """Return one image from the bytes of its file, in any type in which an array holds bytes.

    Raises:
        DatasetError: there are no bytes, or they do not decode.
    """
    if (
        isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in (np.uint8, np.int8)
    ) or isinstance(value, np.void):
        value = value.tobytes()
    if not isinstance(value, bytes):
        raise DatasetError(f"image {where} does not decode (the array holds no bytes of image files)")
    return decode(io.BytesIO(value), where)


def is_encoded(images: Any) -> bool:
    """Return whether an array holds image files instead of pixels."""
    return len(images.shape) == 1


def _channels(shape: Sequence[int]) -> int | None:
    """Return the number of channels of one image ``[H, W, C]`` or ``[C, H, W]``; None for other shapes."""
    return next((size for size in (shape[-1], shape[0]) if size in CHANNELS), None)


def _range_notes(images: Any, where: str) -> list[str]:
    rows = sorted({int(row) for row in np.linspace(0, images.shape[0] - 1, _LOOKED_AT)})
    looked = [np.asarray(images[row : row + 1]) for row in rows]
    low, high = min(part.min() for part in looked), max(part.max() for part in looked)
    if images.dtype.newbyteorder("=") != np.uint16:
        raise DatasetError(
            f"{where} is {images.dtype} with values from {low:.6g} to {high:.6g} ({len(rows)} images were looked at), which does "
            "not say what is black and what is white; say it with --pixel-range, such as --pixel-range 0..1"
        )
    if high >= 2**15:
        return []
    bits = max(8, int(high).bit_length())
    return [
        f"{where}: 16-bit values up to {high} ({len(rows)} images were looked at) are read as black at 0 and white at 65535, so "
        f"images are dark; if white is {2**bits - 1}, give --pixel-range {bits}"
    ]
