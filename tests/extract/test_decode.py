"""Decoding: which decoders a dataset's file reaches, what is opened at all, and how large an image may be."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from featcache.extraction.sources import decode as decoding
from featcache.extraction.sources.decode import decode, pixel_limit
from featcache.extraction.sources.pixels import facts_of
from featcache.store.errors import DatasetError, UnavailableError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encoded(form: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_an_allowed_form_decodes_under_any_name_from_files_and_from_memory(tmp_path, form):
    (tmp_path / "x.jpg").write_bytes(encoded(form))
    for file in (tmp_path / "x.jpg", io.BytesIO(encoded(form))):
        np.testing.assert_array_equal(np.asarray(decode(file, "x")), PIXELS)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "JPEG2000", "AVIF"])
def test_forms_with_loss_are_allowed_too(form):
    assert decode(io.BytesIO(encoded(form)), "x").size == (30, 20)


def test_the_first_of_several_photos_of_a_phone_is_taken():
    views = encoded("MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))])
    image = decode(io.BytesIO(views), "x")
    assert (image.size, facts_of(image)) == ((30, 20), {})
    assert np.asarray(image).std() > 20  # not the second, which is black


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n/x 1 def showpage\n%%EOF\n"
FOREIGN = {
    "eps": EPS,
    "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(100),
    "fits": b"".join(
        line.ljust(80)
        for line in (
            b"SIMPLE  =                    T",
            b"BITPIX  = 8",
            b"NAXIS   = 2",
            b"NAXIS1  = 9",
            b"NAXIS2  = 9",
        )
    )
    + b"END".ljust(80),
    "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(100),
    "icns": b"icns\0\0\x10\0" + bytes(200),
    "gbr": struct.pack(">5I", 28, 2, 4, 4, 1) + b"GIMP" + bytes(60),
    "fli": bytes(4) + b"\x12\xaf" + bytes(200),
    "xpm": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"};\n',
    "pcx": encoded("PCX"),
    "sgi": encoded("SGI"),
    "ico": encoded("ICO"),
    "pdf": b"%PDF-1.4\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=list(FOREIGN))
def test_no_other_decoder_of_the_library_is_reached(tmp_path, monkeypatch, content):
    """Of the forms that the library knows, EPS would start Ghostscript."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "x.jpg").write_bytes(content)
    for file in (tmp_path / "x.jpg", io.BytesIO(content)):
        with pytest.raises(DatasetError, match=r"image x does not decode \(not an image\)"):
            decode(file, "x")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer for ever
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", "/dev/zero"):
        with pytest.raises(DatasetError, match="not a regular file") as caught:
            decode(path, path)
        assert not isinstance(caught.value, UnavailableError)


def test_a_path_that_is_none_is_a_wrong_image():
    with pytest.raises(DatasetError, match="its path is no valid path"):
        decode("a\0b.png", "x")


def test_a_file_that_is_gone_is_not_a_bad_image(tmp_path):
    with pytest.raises(UnavailableError, match=r"cannot be read \(No such file"):
        decode(tmp_path / "x.png", "x")


def test_an_error_of_the_disk_is_not_a_bad_image():
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(UnavailableError, match="Input/output error"):
        decode(Failing(b"x"), "x")


def test_what_a_damaged_image_raises_in_its_decoder_is_a_dataset_error():
    """The decoder of AVIF raises RuntimeError."""
    content = bytearray(encoded("AVIF"))
    start = content.index(b"mdat") + 4
    content[start : start + 64] = bytes(64)
    with pytest.raises(DatasetError, match="image x does not decode"):
        decode(io.BytesIO(content), "x")


def test_running_out_of_memory_in_a_decoder_is_a_dataset_error(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DatasetError, match=r"image x does not decode \(MemoryError\)"):
        decode(io.BytesIO(b""), "x")


def test_the_largest_image_is_bounded_and_the_bound_can_be_moved(recwarn):
    large, larger = (encoded("PNG", Image.new("1", size)) for size in ((10000, 10000), (16000, 12000)))
    assert decode(io.BytesIO(large), "x").size == (10000, 10000)
    assert not recwarn.list
    usual = Image.MAX_IMAGE_PIXELS
    with pytest.raises(
        DatasetError, match=r"192,000,000 pixels, at most 178,956,970 .*--max-pixels 192000000"
    ):
        decode(io.BytesIO(larger), "x")
    with pixel_limit(192_000_000):
        assert decode(io.BytesIO(larger), "x").size == (16000, 12000)
    with (
        pixel_limit(191_999_999),
        pytest.raises(DatasetError, match="192,000,000 pixels, at most 191,999,999"),
    ):
        decode(io.BytesIO(larger), "x")
    with pixel_limit(599), pytest.raises(DatasetError, match="600 pixels, at most 599"):
        decode(io.BytesIO(encoded("PNG")), "x")
    assert usual == Image.MAX_IMAGE_PIXELS


def test_a_huge_file_does_not_reach_a_decoder_that_reads_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_MAX_WHOLE_FILE_BYTES", 1000)
    (tmp_path / "x.webp").write_bytes(encoded("WEBP") + bytes(1000))
    with pytest.raises(DatasetError, match="not an image"):
        decode(tmp_path / "x.webp", "x")


def test_what_pixels_do_not_show_is_kept_with_the_image():
    frames = [Image.fromarray(PIXELS[..., channel]) for channel in range(3)]
    for form in ("TIFF", "GIF"):
        several = encoded(form, frames[0], save_all=True, append_images=frames[1:])
        assert facts_of(decode(io.BytesIO(several), "x")) == {"frames": 1}
    assert facts_of(decode(io.BytesIO(encoded("TIFF")), "x")) == {}


def test_sixteen_bits_of_colour_are_noticed(tmp_path):
    # PNG of 2 x 1 pixels, 16-bit RGB, made by hand: the library writes none.
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"\0" + struct.pack(">6H", 0, 1023, 77, 5, 6, 7)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    image = decode(io.BytesIO(content), "x")
    assert np.asarray(image).max() == 3  # of 1023, the upper 8 bits
    assert facts_of(image) == {"deep": 1024}
