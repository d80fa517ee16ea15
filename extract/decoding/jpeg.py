"""JPEG files by torchvision, where its pixels are Pillow's bit for bit.

Both use libjpeg-turbo. Pillow keeps four bytes a pixel and reads in pieces; without that, an image of 500 x 375 pixels takes a fifth
less time from file to batch. Whatever torchvision cannot decode, Pillow decodes or refuses, with the same messages as ever.
"""

import io
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from featcache.extraction.sources.decode import JpegDecoder

_AS_STORED = 0
"""torchvision's `ImageReadMode.UNCHANGED`: as many channels as the file has."""


@cache
def jpeg_decoder() -> JpegDecoder | None:
    """Return torchvision's decoder; None if it is missing or gives other pixels than Pillow, as another libjpeg may."""
    try:
        import_module("torchvision.io")  # registers the operator that `_decode` calls
        same = all(_agree(data) for data in _samples())
    except (ImportError, OSError, AttributeError):
        return None
    return _decode if same else None


def _decode(data: bytearray) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG file to ``[H, W, 3]`` or ``[H, W]``; None if it cannot be decoded."""
    try:
        # The function around this operator warns at every call that a later torchvision leaves it to torchcodec. Then Pillow decodes.
        decoded = torch.ops.image.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), _AS_STORED, False)
    except RuntimeError:
        return None
    pixels: npt.NDArray[np.uint8] = np.ascontiguousarray(decoded.permute(1, 2, 0).numpy())
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _agree(data: bytes) -> bool:
    decoded = _decode(bytearray(data))
    return decoded is not None and np.array_equal(decoded, np.asarray(Image.open(io.BytesIO(data))))


def _samples() -> Iterator[bytes]:
    """Small files of every form on which versions of libjpeg disagree: chroma subsampling, progressive, grey."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(noise).resize((61, 43), Image.Resampling.BICUBIC)
    forms = [(image, subsampling, progressive) for subsampling in (0, 1, 2) for progressive in (False, True)]
    for picture, subsampling, progressive in [*forms, (image.convert("L"), -1, False)]:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=87, subsampling=subsampling, progressive=progressive)
        yield file.getvalue()
