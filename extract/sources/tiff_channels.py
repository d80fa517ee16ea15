"""TIFF files of further channels, and of channels in separate planes, which need more than Pillow's own reading."""

from contextlib import suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_BITS, _SAMPLES, _PLANES, _EXTRA, _FORMAT = 258, 277, 284, 338, 339
_SEPARATE = 2
_FORMATS = {1: "integers", 2: "signed integers", 3: "floating point"}


def repair_planes(image: "ImageFile") -> None:
    """Make Pillow read the planes of an uncompressed 16-bit TIFF file as such; it takes their bytes for 8-bit values, without an error.

    Args:
        image: the opened image, before its pixels are loaded.

    Raises:
        ValueError: Pillow would divide the colors by a channel that is not said to be transparency.
    """
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or tags.get(_PLANES) != _SEPARATE:
        return
    raw = all(tile.codec_name == "raw" for tile in image.tile)
    if not raw and image.mode == "RGBA" and _EXTRA not in tags:
        raise ValueError("it does not say what its fourth channel is (ExtraSamples); store it as RGB")
    if not raw or max(_numbers(tags.get(_BITS, 1))) != 16:
        return
    order = "L" if tags.prefix == b"II" else "B"
    arguments = [tile.args for tile in image.tile if isinstance(tile.args, tuple)]
    if len(arguments) != len(image.tile):
        return
    if image.mode.startswith("I;16"):
        image.tile = image.tile[:1]  # further planes would be written over the first
        arguments, modes = arguments[:1], [image.mode]
    elif all(args[0] in ("R", "G", "B", "A") for args in arguments):
        modes = [f"{args[0]};16{order}" for args in arguments]
    else:
        return
    image.tile = [
        tile._replace(args=(mode, *args[1:]))
        for tile, args, mode in zip(image.tile, arguments, modes, strict=True)
    ]


def has_further_channels(image: "ImageFile") -> bool:
    """Return whether a TIFF file has more channels than its image of Pillow."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return False
    return max(_numbers(tags.get(_SAMPLES, 1))) > len(image.getbands())


def unread_form(file: IO[bytes]) -> str | None:
    """Describe the pixels of a TIFF file that Pillow does not identify; None if it is no TIFF file."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    # The header and the tags may be damaged in any way.
    with suppress(Exception):
        file.seek(0)
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return None
        tags = ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        samples, bits = tags.get(_SAMPLES, 1), max(_numbers(tags.get(_BITS, 1)))
        kind = _FORMATS.get(max(_numbers(tags.get(_FORMAT, 1))), "values")
        channels = "1 channel" if samples == 1 else f"{samples} channels"
        return f"it is a TIFF file of {channels} of {bits}-bit {kind}, which Pillow does not read"
    return None


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (int(value),)  # type: ignore[call-overload]
