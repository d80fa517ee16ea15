"""TIFF files of any number of channels, which Pillow does not write."""

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

_SHORT, _LONG = 3, 4
_SIZES = {_SHORT: ("H", 2), _LONG: ("I", 4)}


def tiff_file(
    pixels: npt.NDArray[Any],
    extra: int | None = None,
    *,
    planes: bool = False,
    deflate: bool = False,
    grey: bool = False,
) -> bytes:
    """Return a little-endian TIFF file.

    Args:
        pixels: ``[H, W, C]`` of uint8, uint16 or float32.
        extra: value of ExtraSamples for the channels beyond grey or RGB: 0 unspecified, 2 transparency; None leaves it out.
        planes: store each channel apart.
        deflate: compress.
        grey: the first channel is grey, whatever there are; otherwise the first three are RGB.
    """
    height, width, channels = pixels.shape
    pixels = pixels.astype(pixels.dtype.newbyteorder("<"))
    parts = [pixels[..., channel].tobytes() for channel in range(channels)] if planes else [pixels.tobytes()]
    if deflate:
        parts = [zlib.compress(part) for part in parts]
    colour = 3 if channels >= 3 and not grey else 1
    tags: list[tuple[int, int, Sequence[int]]] = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [pixels.dtype.itemsize * 8] * channels),
        (259, _SHORT, [8 if deflate else 1]),
        (262, _SHORT, [2 if colour == 3 else 1]),
        (273, _LONG, [0] * len(parts)),
        (277, _SHORT, [channels]),
        (278, _LONG, [height]),
        (279, _LONG, [len(part) for part in parts]),
        (284, _SHORT, [2 if planes else 1]),
    ]
    if extra is not None and channels > colour:
        tags.append((338, _SHORT, [extra] * (channels - colour)))
    if pixels.dtype.kind == "f":
        tags.append((339, _SHORT, [3] * channels))
    behind = 8 + 2 + 12 * len(tags) + 4
    start = behind + sum(size for _, kind, values in tags if (size := _SIZES[kind][1] * len(values)) > 4)
    offsets = [start + sum(map(len, parts[:index])) for index in range(len(parts))]
    entries, outside = b"", b""
    for tag, kind, values in tags:
        raw = struct.pack(f"<{len(values)}{_SIZES[kind][0]}", *(offsets if tag == 273 else values))
        if len(raw) > 4:
            value, outside = struct.pack("<I", behind + len(outside)), outside + raw
        else:
            value = raw.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(values)) + value
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + entries
        + struct.pack("<I", 0)
        + outside
        + b"".join(parts)
    )
