"""The table of image formats: which files are read, what is said of the others, and the bounds of formats with plugins."""

import io
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.extraction.decoding.rgb import to_rgb, turned_upright
from featcache.extraction.sources import decode as decoding
from featcache.extraction.sources import image_formats, resolve_source
from featcache.extraction.sources.decode import decode, pixel_limit, stored_orientation
from featcache.extraction.sources.image_formats import (
    EXTENSIONS,
    FORMATS,
    HEIF,
    JXL,
    ImageFormat,
    decoders,
    install_advice,
    passed_over_text,
)
from featcache.extraction.sources.jxl_header import CONTAINER, SIGNATURE, read_jxl_header
from featcache.extraction.sources.pixels import facts_of
from featcache.store.errors import DatasetError

heic = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
jxl = pytest.mark.skipif(find_spec("pillow_jxl") is None, reason="pillow-jxl-plugin is not installed")
ORIENTATION = 0x0112
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48))
WRITERS = {"DIB": "DIB", "MPO": "JPEG"}
_EXTRA = "pip install 'featcache[formats]'"


def encoded(form: str, image: Image.Image = PHOTO, **options: object) -> bytes:
    decoders(streamed=False)  # registers the plugins
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.decoder)
def test_every_extension_of_the_table_is_read_from_a_folder(form, tmp_path):
    if not form.is_available:
        pytest.skip(f"{form.module} is not installed")
    for index, extension in enumerate(form.extensions):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            for copy in range(2):
                path = tmp_path / name / f"{index}{copy}{extension.upper() if copy else extension}"
                path.write_bytes(encoded(form.decoder))
    source = resolve_source(f"imagefolder:{tmp_path}")
    assert sum(map(len, source.splits.values())) == 4 * len(form.extensions)
    assert not source.passed_over
    assert to_rgb(source.image("train", 0)).size == PHOTO.size


def test_the_table_agrees_with_pillow_on_what_an_extension_means():
    decoders(streamed=False)
    Image.init()
    meanings = Image.registered_extensions()
    named = [extension for form in FORMATS for extension in form.extensions]
    assert len(named) == len(set(named))
    for form in FORMATS:
        if form.is_available:
            others = {".mpo"}  # whose first image is a JPEG
            assert {meanings[extension] for extension in form.extensions if extension not in others} == {
                form.decoder
            }
    assert {extension for form in FORMATS if form.is_available for extension in form.extensions} == EXTENSIONS


@pytest.fixture
def without_plugins(monkeypatch):
    """As if Pillow came without AVIF, and no plugin was installed."""
    monkeypatch.setattr(image_formats, "_is_installed", lambda module: False)
    plain = tuple(form.decoder for form in FORMATS if not form.module)
    monkeypatch.setattr(decoding, "decoders", lambda streamed: plain)


def test_what_is_said_of_files_that_are_not_read(without_plugins):
    assert install_advice(".HEIC") == install_advice(".jxl") == _EXTRA
    assert install_advice(".txt") is install_advice(".jpg") is None
    assert passed_over_text({".txt": 12, ".heic": 1234}) == (
        f"1,246 files passed over: .heic 1,234 ({_EXTRA}), .txt 12"
    )
    assert passed_over_text({".md": 1}) == "1 file passed over: .md 1"
    assert passed_over_text({"rows without a label": 3}) == "3 rows passed over: rows without a label 3"
    assert passed_over_text({}) == ""


@pytest.mark.parametrize(
    ("head", "form", "command"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", HEIF, _EXTRA),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", HEIF, _EXTRA),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "AVIF", "pip install --upgrade pillow"),
        (SIGNATURE + bytes(14), JXL, _EXTRA),
        (CONTAINER + bytes(14), JXL, _EXTRA),
    ],
)
def test_an_image_whose_decoder_is_missing_names_what_to_install(
    without_plugins, tmp_path, head, form, command
):
    (tmp_path / "x.jpg").write_bytes(head + bytes(100))
    for file in (tmp_path / "x.jpg", io.BytesIO(head + bytes(100))):
        with pytest.raises(DatasetError) as caught:
            decode(file, "x")
        assert str(caught.value) == f"image x does not decode (its format is {form}; {command})"


def test_files_that_are_no_images_are_told_from_those_whose_decoder_is_missing(without_plugins):
    for content in (b"", b"\0" * 5, b"\0\0\0\x18ftypisom" + bytes(20), b"text"):
        with pytest.raises(DatasetError, match=r"does not decode \(not an image\)"):
            decode(io.BytesIO(content), "x")


class Bits:
    """The writer of a JPEG XL header, from the tables of the standard."""

    def __init__(self) -> None:
        self.text = ""

    def put(self, value: int, count: int) -> None:
        self.text = f"{value:0{count}b}" + self.text if count else self.text

    def side(self, pixels: int) -> None:
        widths = (9, 13, 18, 30)
        selector = next(index for index, width in enumerate(widths) if pixels <= 2**width)
        self.put(selector, 2)
        self.put(pixels - 1, widths[selector])

    def bytes(self) -> bytes:
        return SIGNATURE + int(self.text, 2).to_bytes(40, "little")


def header(width: int, height: int, animated: bool = False, orientation: int = 1) -> bytes:
    bits = Bits()
    bits.put(0, 1)  # not in eighths
    bits.side(height)
    bits.put(0, 3)  # no ratio
    bits.side(width)
    for value, count in ((0, 1), (1, 1), (orientation - 1, 3), (0, 1), (0, 1), (int(animated), 1)):
        bits.put(value, count)
    return bits.bytes()


SIDES = st.integers(1, 2**30)


@given(width=SIDES, height=SIDES, animated=st.booleans(), orientation=st.integers(1, 8), packed=st.booleans())
@settings(max_examples=200, deadline=None)
def test_headers_of_jpeg_xl_are_read(width, height, animated, orientation, packed):
    content = header(width, height, animated, orientation)
    if packed:
        boxes = (CONTAINER, b"\0\0\0\x14ftypjxl \0\0\0\0jxl ", b"\0\0\0\0jxlc")
        content = b"".join(boxes) + content
    assert read_jxl_header(io.BytesIO(content)) == (width, height, animated)


@jxl
@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), container=st.booleans())
def test_the_encoder_agrees_on_sizes(width, height, container):
    content = encoded(JXL, Image.new("L", (width, height)), use_container=container, effort=1)
    assert read_jxl_header(io.BytesIO(content)) == (width, height, False)


@pytest.mark.parametrize(
    "content",
    [
        SIGNATURE,
        SIGNATURE + bytes(3),
        CONTAINER,
        CONTAINER + b"\0\0\0\0free",
        CONTAINER + b"\0\0\0\x04free" * 9,
        CONTAINER + b"\0\0\0\x08free" * 2000,
        b"\0\0\0\0JXL junk junk",
    ],
)
def test_damaged_headers_of_jpeg_xl_are_refused(content):
    with pytest.raises(ValueError, match=r"its (header|container)"):
        read_jxl_header(io.BytesIO(content))
    assert read_jxl_header(io.BytesIO(b"\x89PNG\r\n\x1a\n" + content)) is None


@jxl
def test_a_jpeg_xl_file_of_too_many_pixels_does_not_reach_the_decoder(monkeypatch):
    monkeypatch.setattr("pillow_jxl.JpegXLImagePlugin.Decoder", lambda **_: pytest.fail("it was decoded"))
    with pytest.raises(
        DatasetError, match=r"it has 1,073,741,824 pixels, .*--max-pixels 1073741824 reads it"
    ):
        decode(io.BytesIO(header(2**15, 2**15)), "x")


@pytest.mark.parametrize("form", [pytest.param(HEIF, marks=heic), pytest.param(JXL, marks=jxl)])
def test_the_bounds_hold_for_formats_with_plugins(form, tmp_path, monkeypatch):
    content = encoded(form)
    with (
        pixel_limit(PHOTO.width * PHOTO.height - 1),
        pytest.raises(DatasetError, match="3,072 pixels, at most 3,071"),
    ):
        decode(io.BytesIO(content), "x")
    assert np.abs(np.asarray(to_rgb(decode(io.BytesIO(content), "x"))).astype(int) - PHOTO).mean() < 8
    monkeypatch.setattr(decoding, "_MAX_WHOLE_FILE_BYTES", 100)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DatasetError, match="not an image"):
        decode(tmp_path / "x", "x")


@pytest.mark.parametrize("form", [pytest.param(HEIF, marks=heic), pytest.param(JXL, marks=jxl)])
def test_damaged_files_of_formats_with_plugins_are_dataset_errors(form):
    content, random = encoded(form), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(damaged), 8):
            damaged[place] = random.integers(256)
        try:
            decode(io.BytesIO(bytes(damaged[: random.integers(20, len(damaged))])), "x").convert("RGB")
        except DatasetError as error:
            assert str(error).startswith("image x does not decode")  # noqa: PT017


@heic
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_photos_are_upright_as_their_decoder_gives_them(orientation, tmp_path):
    """The decoder turns by the container's own flags, and the EXIF tag beside them must not turn once more."""
    from .test_orientation import stored_as

    path = tmp_path / "photo.heic"
    path.write_bytes(encoded(HEIF, stored_as(PHOTO, orientation), exif=oriented(orientation), quality=95))
    image = to_rgb(decode(path, "x"))
    assert not facts_of(image).get("turned")
    assert stored_orientation(path) == 1
    assert np.abs(np.asarray(image).astype(int) - PHOTO).mean() < 8


@jxl
def test_jpeg_xl_turns_a_packed_jpeg_file_and_nothing_else(tmp_path):
    from .test_orientation import stored_as

    stored = stored_as(PHOTO, 6)
    stored.save(tmp_path / "photo.jpg", exif=oriented(6), quality=95, subsampling=0)
    with pytest.warns(UserWarning, match="JPEG reconstruction"):
        Image.open(tmp_path / "photo.jpg").save(tmp_path / "photo.jxl")
    packed = to_rgb(decode(tmp_path / "photo.jxl", "x"))
    assert stored_orientation(tmp_path / "photo.jxl") == facts_of(packed)["turned"] == 6
    assert np.abs(np.asarray(turned_upright(packed)).astype(int) - PHOTO).mean() < 8
    # By the standard, EXIF data beside a codestream do not say how it is shown.
    own = to_rgb(decode(io.BytesIO(encoded(JXL, stored, exif=oriented(6), lossless=True)), "x"))
    assert not facts_of(own).get("turned")
    np.testing.assert_array_equal(np.asarray(turned_upright(own)), np.asarray(stored))


@jxl
def test_sixteen_bits_of_jpeg_xl_follow_the_rule_of_pixels():
    values = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    content = encoded(JXL, Image.fromarray(values), lossless=True)
    image = to_rgb(decode(io.BytesIO(content), "x"))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], values >> 8)


def test_the_index_of_a_shard_is_another_where_more_formats_are_read(monkeypatch):
    from featcache.extraction.sources.webdataset import SampleReading

    keys = set()
    for decoder in ((), (HEIF,), (HEIF, JXL)):
        monkeypatch.setattr(
            "featcache.extraction.sources.webdataset.added_formats", lambda decoder=decoder: decoder
        )
        keys.add(SampleReading(None, None).key)
    assert len(keys) == 3


def test_formats_are_known_by_name():
    assert {form.decoder for form in FORMATS} >= {
        "JPEG",
        "PNG",
        "WEBP",
        "BMP",
        "GIF",
        "TIFF",
        "PPM",
        "JPEG2000",
        "TGA",
        "AVIF",
    }
    assert not ImageFormat("X", (".x",), module="no_such_package").is_available
    assert not ImageFormat("X", (".x",), module="PIL.no_such_module").is_available
