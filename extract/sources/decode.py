"""Decoding one image by a known decoder, within a bound, with an error that names the image.

Every source decodes its images here: files, members of shards, cells of tables, items of sequences.
"""

import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.image_formats import HEIF, JXL, decoders, missing_format
from featcache.extraction.sources.jxl_header import read_jxl_header
from featcache.extraction.sources.pixels import WHITE, remember
from featcache.extraction.sources.tiff_channels import has_further_channels, repair_planes, unread_form
from featcache.store.errors import DatasetError, UnavailableError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 178_956_970
"""Default size limit of a decoded image in pixels, the same as Pillow's; `pixel_limit` changes it."""
_MAX_WHOLE_FILE_BYTES = 2**30
"""Size limit of an image file in bytes, since some decoders read the whole file at once."""

_ORIENTATION = 0x0112
"""Tag of the orientation in EXIF data."""
_TURNED_BY_DECODER = ("TIFF", HEIF)
"""Formats whose decoders turn images upright by themselves."""
_EIGHT_BIT_COLOUR = ("RGB", "RGBA", "LA", "CMYK")

_max_pixels: ContextVar[int] = ContextVar("featcache_max_pixels", default=MAX_PIXELS)


@contextmanager
def pixel_limit(pixels: int | None) -> Iterator[None]:
    """Allow images of up to `pixels` pixels inside the block; None keeps `MAX_PIXELS`."""
    token = _max_pixels.set(pixels or MAX_PIXELS)
    try:
        yield
    finally:
        _max_pixels.reset(token)


JpegDecoder = Callable[[bytearray], "npt.NDArray[np.uint8] | None"]
"""Decodes a JPEG file to ``[H, W, 3]`` or ``[H, W]``, with the pixels that Pillow gives; None leaves the file to Pillow."""
_jpeg_decoder: ContextVar[JpegDecoder | None] = ContextVar("featcache_jpeg_decoder", default=None)


@contextmanager
def jpegs_decoded_by(decoder: JpegDecoder | None) -> Iterator[None]:
    """Decode plain JPEG files by `decoder` inside the block; None leaves them to Pillow."""
    token = _jpeg_decoder.set(decoder)
    try:
        yield
    finally:
        _jpeg_decoder.reset(token)


def decode(file: "str | Path | IO[bytes]", name: object) -> "Image":
    """Decode an image file, in whatever mode it is stored.

    Args:
        file: the path of a regular file, or the open file.
        name: name of the image in errors.

    Raises:
        UnavailableError: the file is gone or cannot be read; the image itself may be intact.
        DatasetError: the file is not an image that can be decoded.
    """
    if not isinstance(file, str | Path):
        return _decode(file, name, len(file.getbuffer()) if hasattr(file, "getbuffer") else 0)
    with _open_regular(file, name) as opened:
        return _decode(opened, name, os.fstat(opened.fileno()).st_size)


def stored_orientation(path: str | Path) -> int:
    """Return the EXIF orientation in the header of an image file, 1 (upright) to 8, as it applies to the decoded pixels.

    Raises:
        UnavailableError: the file is gone or cannot be read.
        DatasetError: the file is not an image.
    """
    from PIL import Image

    with _open_regular(path, path) as file:
        try:
            with _quiet(), Image.open(file, formats=decoders(streamed=False)) as image:
                return orientation_of(image)
        except Exception as error:  # as in `decode`
            raise DatasetError(f"image {path} does not decode ({_reason(error)})") from error


def orientation_of(image: "Image") -> int:
    """Return the EXIF orientation that the decoded pixels of an image still have, 1 (upright) to 8."""
    stored_format = getattr(image, "format", None)
    if stored_format in _TURNED_BY_DECODER:
        return 1
    if stored_format == JXL and not getattr(image, "jpeg", False):
        return 1  # the codestream says which way is up, and EXIF data beside it does not count; a packed JPEG file is as stored
    with suppress(
        Exception
    ):  # Pillow raises many types of errors for damaged EXIF data; the pixels are unaffected
        value = int(image.getexif().get(_ORIENTATION, 1))
        return value if 1 <= value <= 8 else 1
    return 1


def _open_regular(path: str | Path, name: object) -> IO[bytes]:
    """Open a regular file; refuse a pipe, a device or a folder without waiting for it or reading from it."""
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except ValueError:  # a NUL in the path
        raise DatasetError(f"image {name!s:.200} does not decode (its path is no valid path)") from None
    except OSError as error:
        raise _unavailable(name, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DatasetError(f"image {name} does not decode (it is not a regular file)")
    return os.fdopen(descriptor, "rb")


def _decode(file: IO[bytes], name: object, num_bytes: int) -> "Image":
    from PIL import Image, UnidentifiedImageError

    formats = decoders(streamed=num_bytes > _MAX_WHOLE_FILE_BYTES)
    try:
        animated = _is_animated_jxl(file, name, formats)
        with _quiet(), Image.open(file, formats=formats) as image:
            if image.width * image.height > _max_pixels.get():
                raise DatasetError(_too_large(name, image.width * image.height))
            repair_planes(image)
            raw_mode, frames, white = (
                _raw_mode(image),
                animated or _has_more_frames(image),
                _declared_white(image),
            )
            if num_bytes and (decoded := _decoded_jpeg(image, file)) is not None:
                return decoded
            image.load()
            if image.width * image.height > _max_pixels.get():  # HEIC tells its true size as it is decoded
                raise DatasetError(_too_large(name, image.width * image.height))
            _remember(image, raw_mode, frames, white)
            return image
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        raise DatasetError(_too_large(name, int(found[1]) if found else None)) from error
    except OSError as error:
        if error.errno is not None and not isinstance(error, UnidentifiedImageError):
            raise _unavailable(name, error) from error
        missing = _unread_format(file) if isinstance(error, UnidentifiedImageError) else None
        raise DatasetError(f"image {name} does not decode ({missing or _reason(error)})") from error
    except (
        Exception
    ) as error:  # decoders raise any error on damaged input: RuntimeError, KeyError, MemoryError, ...
        raise DatasetError(f"image {name} does not decode ({_reason(error)})") from error


def _is_animated_jxl(file: IO[bytes], name: object, formats: Sequence[str]) -> bool:
    """Return whether a file is a JPEG XL file of several frames; refuse one of too many pixels.

    The decoder takes memory for all pixels as a file is opened, so the header is read before.
    """
    if JXL not in formats:
        return False
    try:
        header = read_jxl_header(file)
    finally:
        file.seek(0)
    if header is not None and header.width * header.height > _max_pixels.get():
        raise DatasetError(_too_large(name, header.width * header.height))
    return header is not None and header.animated


def _unread_format(file: IO[bytes]) -> str | None:
    """Name the format of a file that no decoder here reads, and what to do; None for files of no known format."""
    with suppress(OSError, ValueError):
        file.seek(0)
        form = missing_format(file.read(16))
        if form is None and (text := unread_form(file)) is not None:
            return f"{text}; convert it to 8-bit grey or RGB, or store images as arrays (npz:, hdf5:)"
        return None if form is None else f"its format is {form.decoder}; {form.install}"
    return None


def _decoded_jpeg(image: "ImageFile", file: IO[bytes]) -> "Image | None":
    """The image of a plain JPEG file by the other decoder, if there is one that decodes it; Pillow has read its header."""
    decoder = _jpeg_decoder.get()
    if decoder is None or image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    from featcache.extraction.sources.decoded_jpeg import DecodedJpeg

    file.seek(0)
    pixels = decoder(bytearray(file.read()))
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return None
    return DecodedJpeg(pixels, image.info) if pixels.ndim == (3 if image.mode == "RGB" else 2) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off Pillow's own size limit and its warning, since the limit of this module replaces them."""
    from PIL import Image

    usual, limit = Image.MAX_IMAGE_PIXELS, _max_pixels.get()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if usual is None or limit <= 2 * usual:
            yield
            return
        Image.MAX_IMAGE_PIXELS = limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _raw_mode(image: "ImageFile") -> str:
    """Pillow's name for the layout of the stored pixels, such as ``RGB;16B``; known before an image is loaded."""
    args = image.tile[0][3] if image.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _declared_white(image: "ImageFile") -> int:
    """The white value that a PGM or PPM file of more than 8 bits declares, and that Pillow scales to 65535; 0 for other files."""
    args = image.tile[0][3] if image.tile else ()
    # Pillow does not scale values if white is declared as 65535, except in color images.
    if image.format != "PPM" or not isinstance(args, tuple) or not isinstance(args[-1], int):
        return 0
    return args[-1] if args[-1] > 255 else 0


def _has_more_frames(image: "ImageFile") -> bool:
    # The further images of an MPO file are previews or other views of the same photo.
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def _remember(image: "ImageFile", raw_mode: str, frames: bool, white: int) -> None:
    """Attach the facts that the pixels of a loaded image do not show."""
    facts = {"frames": 1} if frames else {}
    if has_further_channels(image):
        facts["channels"] = 1
    if white and image.mode == "I":
        facts[WHITE] = white
    if (";16" in raw_mode or white) and image.mode in _EIGHT_BIT_COLOUR:
        # Pillow has no 16-bit color: it keeps the upper 8 bits of every value.
        colours = [np.asarray(image.getchannel(band)) for band in image.getbands() if band != "A"]
        facts["deep"] = (int(max(colour.max() for colour in colours)) << 8) + 256
    if facts:
        remember(image, **facts)


def _unavailable(name: object, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"image {name} cannot be read ({error.strerror or error}); the folder may be gone or not mounted: once the file "
        "is there again, the same command resumes"
    )


def _too_large(name: object, pixels: int | None) -> str:
    size = "too many" if pixels is None else f"{pixels:,}"
    wanted = "N" if pixels is None else pixels
    return (
        f"image {name} does not decode (it has {size} pixels, at most {_max_pixels.get():,} are read; "
        f"--max-pixels {wanted} reads it)"
    )


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    # Pillow's message shows an unidentified file object by its memory address, which does not help.
    if lines and "cannot identify image file" in lines[0]:
        return "not an image"
    return lines[0] if lines else type(error).__name__
