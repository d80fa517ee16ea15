"""The header of a JPEG XL file (width, height, animation), read before a decoder takes memory for the pixels.

The plugin of Pillow decodes a file as it opens it, so a limit of pixels has to be held before. The form of the header is that of
ISO/IEC 18181-1 (SizeHeader, ImageMetadata) and 18181-2 (the boxes of the container).
"""

from typing import IO, NamedTuple

SIGNATURE = b"\xff\x0a"
CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_CODESTREAM, _PART = b"jxlc", b"jxlp"
_HEADER_BYTES = 48
_MAX_BOXES = 1024
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width over height by the number in the header, from 1."""


class JxlHeader(NamedTuple):
    """The beginning of a JPEG XL file."""

    width: int
    """Pixels, before the image is turned upright."""
    height: int
    """Pixels, before the image is turned upright."""
    animated: bool
    """Whether the file has several frames, of which Pillow's plugin gives the first."""


def read_jxl_header(file: IO[bytes]) -> JxlHeader | None:
    """Return the header of a JPEG XL file; None if the file is of another format.

    Args:
        file: the open file; its position is moved.

    Raises:
        ValueError: the file begins like JPEG XL, and its header cannot be read.
    """
    file.seek(0)
    head = file.read(len(CONTAINER))
    if head.startswith(SIGNATURE):
        file.seek(0)
    elif head == CONTAINER:
        _seek_codestream(file)
    elif head[4:7] == b"JXL":  # taken for JPEG XL by the plugin
        raise ValueError("its header is not that of a JPEG XL file")
    else:
        return None
    start = file.read(_HEADER_BYTES)
    if not start.startswith(SIGNATURE) or len(start) < 12:
        raise ValueError("its header is not that of a JPEG XL file")
    bits = _Bits(start[len(SIGNATURE) :])
    width, height = bits.size()
    return JxlHeader(width, height, bits.is_animated())


def _seek_codestream(file: IO[bytes]) -> None:
    """Move to the beginning of the codestream in a container."""
    for _ in range(_MAX_BOXES):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        rest = length - 8
        if length == 1:
            rest = int.from_bytes(file.read(8), "big") - 16
        if kind == _CODESTREAM:
            return
        if kind == _PART:
            file.read(4)
            return
        if len(head) < 8 or rest < 0:  # 0: the box goes to the end of the file
            break
        file.seek(rest, 1)
    raise ValueError("its container holds no image")


class _Bits:
    """The bits behind the signature, the lowest of each byte first; beyond the end they are 0."""

    def __init__(self, content: bytes) -> None:
        self._bits = int.from_bytes(content, "little")

    def size(self) -> tuple[int, int]:
        """Read width and height of the image."""
        small = self._take(1)
        height = self._side(small)
        ratio = self._take(3)
        if not ratio:
            return self._side(small), height
        numerator, denominator = _RATIOS[ratio - 1]
        return height * numerator // denominator, height

    def is_animated(self) -> bool:
        """Read the metadata behind the size as far as the flag of an animation."""
        all_default = self._take(1)
        if all_default or not self._take(1):
            return False
        self._take(3)  # orientation
        if self._take(1):  # a size to show the image at
            self.size()
        # A preview has a header of another form; such files are not made by usual encoders.
        return not self._take(1) and bool(self._take(1))

    def _take(self, count: int) -> int:
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        return value

    def _side(self, small: int) -> int:
        if small:
            return (self._take(5) + 1) * 8
        return self._take((9, 13, 18, 30)[self._take(2)]) + 1
