"""The image formats that may be decoded, in one table: extensions, decoders, and what to install for those that are missing.

The content of a file decides which decoder runs, not its extension. So only decoders of the usual image formats of datasets are
listed. Pillow has many more: some start another program (EPS runs Ghostscript), others are hardly ever tested against damaged
files (FLI, FITS, PSD, WMF, ICNS, GBR). An MPO file opens as its first JPEG.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec

from featcache.extraction.sources import jxl_header


@dataclass(frozen=True)
class ImageFormat:
    """One format."""

    decoder: str
    """Name of the decoder in Pillow."""
    extensions: tuple[str, ...]
    """Extensions of its files, in lower case. Those that usually hold something else, such as ``.vst`` of TGA, are left out."""
    streamed: bool = False
    """Whether the decoder reads a file in pieces, whatever its size; others read the whole file at once."""
    module: str = ""
    """Module that the decoder needs and that may be missing."""
    install: str = ""
    """Command that installs the module."""

    @property
    def is_available(self) -> bool:
        """Whether files of this format can be decoded; nothing is imported to find out."""
        return not self.module or _is_installed(self.module)


HEIF, JXL = "HEIF", "JXL"
FORMATS = (
    ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), streamed=True),
    ImageFormat("PNG", (".png", ".apng"), streamed=True),
    ImageFormat("WEBP", (".webp",)),
    ImageFormat("BMP", (".bmp",), streamed=True),
    ImageFormat("DIB", (".dib",), streamed=True),
    ImageFormat("GIF", (".gif",), streamed=True),
    ImageFormat("TIFF", (".tif", ".tiff"), streamed=True),
    ImageFormat("PPM", (".ppm", ".pgm", ".pbm", ".pnm"), streamed=True),
    ImageFormat("JPEG2000", (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")),
    ImageFormat("TGA", (".tga",), streamed=True),
    ImageFormat("AVIF", (".avif",), module="PIL._avif", install="pip install --upgrade pillow"),
    ImageFormat(
        HEIF, (".heic", ".heif", ".hif"), module="pillow_heif", install="pip install 'featcache[formats]'"
    ),
    ImageFormat(JXL, (".jxl",), module="pillow_jxl", install="pip install 'featcache[formats]'"),
)
"""All formats that may be decoded; the extra ``formats`` installs what HEIF and JPEG XL need."""


def _is_installed(module: str) -> bool:
    """Return whether a module or submodule is installed, without importing anything."""
    package, _, name = module.partition(".")
    spec = find_spec(package)
    return spec is not None and (
        not name or PathFinder.find_spec(module, spec.submodule_search_locations) is not None
    )


AVAILABLE = tuple(form for form in FORMATS if form.is_available)
"""The formats that can be decoded on this machine."""
EXTENSIONS = frozenset(extension for form in AVAILABLE for extension in form.extensions)
"""Extensions of image files that can be decoded, in lower case."""


def added_formats() -> tuple[str, ...]:
    """Return the decoders that are installed on top of Pillow's own, which decide what of a dataset is read."""
    return tuple(form.decoder for form in AVAILABLE if form.module and not form.module.startswith("PIL."))


@cache
def decoders(streamed: bool) -> tuple[str, ...]:
    """Return Pillow's names of the decoders that may run, after registering those of other packages.

    Args:
        streamed: only those that read a file in pieces.
    """
    # Where nothing handles Pillow's log, its lines go to stderr; what is wrong with a file is said in our own errors.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    if streamed:
        return tuple(form.decoder for form in AVAILABLE if form.streamed)
    available = {form.decoder for form in AVAILABLE}
    # Images are decoded by processes side by side, so a decoder with threads of its own only gets in their way.
    if HEIF in available:
        import_module("pillow_heif").register_heif_opener(
            thumbnails=False, depth_images=False, aux_images=False, decode_threads=1
        )
    if JXL in available:
        import_module("pillow_jxl")
        vars(import_module("pillow_jxl.JpegXLImagePlugin"))["DECODE_THREADS"] = 0
    return tuple(form.decoder for form in AVAILABLE)


def install_advice(extension: str) -> str | None:
    """Return the command that installs support for files of `extension`; None if none is known or needed."""
    for form in FORMATS:
        if extension.lower() in form.extensions and not form.is_available:
            return form.install
    return None


def missing_format(head: bytes) -> ImageFormat | None:
    """Return the format of a file that no installed decoder reads, by its first 16 bytes; None if it is not known."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if head.startswith((jxl_header.SIGNATURE, jxl_header.CONTAINER)):
        name = JXL
    elif brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"):
        name = HEIF
    elif brand in (b"avif", b"avis"):
        name = "AVIF"
    else:
        return None
    return next((form for form in FORMATS if form.decoder == name and not form.is_available), None)


def passed_over_text(passed_over: Mapping[str, int]) -> str:
    """Describe what a source has not read; empty if there is nothing.

    For example ``15 files passed over: .txt 12, .heic 3 (pip install 'featcache[formats]')``.
    """
    if not passed_over:
        return ""
    parts = []
    for name, count in sorted(passed_over.items(), key=lambda item: (-item[1], item[0])):
        advice = install_advice(name)
        parts.append(f"{name} {count:,}" + (f" ({advice})" if advice else ""))
    total = sum(passed_over.values())
    what = "row" if all(name.startswith("rows ") for name in passed_over) else "file"
    return f"{total:,} {what}{'' if total == 1 else 's'} passed over: {', '.join(parts)}"
