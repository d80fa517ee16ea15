"""Pixel values of every type as 8 bits: never a guess."""

import numpy as np
import pytest
from PIL import Image

from featcache.extraction.decoding.rgb import to_rgb, turned_upright
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.decode import decode
from featcache.extraction.sources.pixels import FACTS, PixelOptions, PixelRange, facts_of, to_8_bit
from featcache.store.errors import RequestError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def as_rgb(values: np.ndarray, text: str = "auto") -> np.ndarray:
    return np.asarray(to_rgb(Image.fromarray(values), PixelOptions(PixelRange.parse(text))))[..., 0]


def test_sixteen_bits_are_taken_from_black_to_white_and_their_largest_value_is_kept():
    values = np.array([[0, 255, 256, 1023, 65535]], np.uint16)
    image = to_rgb(Image.fromarray(values))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 3, 255]
    assert facts_of(image)["deep"] == 65536


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (16, 65535)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_of_a_number_of_bits_the_upper_eight_are_taken(bits, top, dtype):
    values = (np.arange(256) << (bits - 8)).astype(dtype).reshape(16, 16)
    np.testing.assert_array_equal(as_rgb(values, str(bits)), GREY)
    assert as_rgb(np.full((2, 2), top, dtype), str(bits)).min() == 255


@pytest.mark.parametrize(
    ("values", "text", "wanted"),
    [
        (np.array([[0, 0.5, 1]], np.float32), "0..1", [0, 128, 255]),
        (np.array([[-1, 0, 1]], np.float32), "-1..1", [0, 128, 255]),
        (np.array([[-1000, 1000, 3000]], np.int32), "-1000..3000", [0, 128, 255]),
        (np.array([[0, 128, 255]], np.int32), "0..255", [0, 128, 255]),
        (np.array([[0, 500, 1000]], np.uint16), "0..1000", [0, 128, 255]),
    ],
)
def test_a_range_goes_from_black_to_white(values, text, wanted):
    assert as_rgb(values, text)[0].tolist() == wanted


def test_values_outside_of_a_range_are_counted():
    options = PixelOptions(PixelRange.parse("0..100"))
    assert facts_of(to_rgb(Image.fromarray(np.array([[0, 101]], np.int32)), options))["clipped"] == 1
    assert facts_of(to_rgb(Image.fromarray(np.array([[0, 100]], np.int32)), options))["clipped"] == 0


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_type_that_does_not_say_what_is_white_is_refused(dtype):
    """Integers of 32 bits with values up to 255 once came out black."""
    with pytest.raises(
        ValueError, match=r"values 0 to 255, which does not say what is white; .*--pixel-range 12"
    ):
        to_rgb(Image.fromarray(GREY.astype(dtype)))


def test_a_value_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a finite number"):
        as_rgb(np.array([[0, np.nan]], np.float32), "0..1")


def test_a_range_leaves_images_of_eight_bits_alone():
    np.testing.assert_array_equal(as_rgb(GREY, "12"), GREY)
    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    np.testing.assert_array_equal(
        np.asarray(to_rgb(Image.fromarray(colours), PixelOptions(PixelRange.parse("0..9")))), colours
    )


def test_arrays_of_any_shape_follow_the_same_rule():
    values = np.arange(48, dtype=np.uint16).reshape(2, 4, 6) * 1000
    np.testing.assert_array_equal(to_8_bit(values, None), values // 256)
    np.testing.assert_array_equal(to_8_bit(values, PixelRange.parse("16")), values // 256)
    assert to_8_bit(np.array([True, False]), None).tolist() == [255, 0]


@pytest.mark.parametrize("text", ["7", "33", "abc", "1..0", "0..", "0..inf", "0..nan", "", "1..1", "１２"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(RequestError, match="--pixel-range must be auto"):
        DatasetOptions(pixel_range=text)


def test_other_options_of_pixels_are_checked():
    with pytest.raises(RequestError, match="--max-pixels must be at least 1, got 0"):
        DatasetOptions(max_pixels=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_only_where_that_is_asked_for(tmp_path, orientation):
    from PIL import ImageOps

    from featcache.extraction.sources.decode import decode

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).save(tmp_path / "x.png", exif=exif)
    stored = decode(tmp_path / "x.png", "x")
    image = to_rgb(stored)
    upright = turned_upright(image)
    turned = orientation if orientation > 1 else 0
    assert facts_of(image).get("turned", 0) == facts_of(upright).get("turned", 0) == turned
    np.testing.assert_array_equal(np.asarray(image), np.asarray(stored))
    np.testing.assert_array_equal(np.asarray(upright), np.asarray(ImageOps.exif_transpose(stored)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_that_is_dropped_is_noticed(mode):
    colour = (9,) * (len(mode) - 1)
    assert facts_of(to_rgb(Image.new(mode, (4, 4), (*colour, 100))))["alpha"] == 1
    assert facts_of(to_rgb(Image.new(mode, (4, 4), (*colour, 255))))["alpha"] == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_nothing_is_said_of_usual_images(mode):
    assert not any(facts_of(to_rgb(Image.new(mode, (4, 4)))).values())
    assert set(facts_of(to_rgb(Image.new(mode, (4, 4))))) <= {*FACTS}


def test_the_identity_tells_how_pixels_are_read_only_where_that_was_asked_for(tmp_path):
    from featcache.extraction.sources import resolve_source

    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / name)

    def identity(**options: str) -> dict[str, object]:
        return dict(resolve_source(f"imagefolder:{tmp_path}", DatasetOptions(**options)).identity)  # type: ignore[arg-type]

    plain = identity()
    assert identity(pixel_range="auto") == plain
    assert identity(pixel_range="12") == {**plain, "pixel_range": "12"}


@pytest.mark.parametrize("white", [1023, 4095, 65535])
def test_the_white_that_a_pgm_file_declares_is_white_and_a_range_counts_from_its_own_values(tmp_path, white):
    values = np.linspace(0, white, 256).round().astype(">u2").reshape(16, 16)
    (tmp_path / "g.pgm").write_bytes(b"P5 16 16 %d\n" % white + values.tobytes())
    rgb = np.asarray(to_rgb(decode(tmp_path / "g.pgm", "g")))[..., 0]
    assert abs(rgb.astype(int) - GREY).max() <= 1
    ends = PixelOptions(PixelRange.parse(f"0..{white}"))
    image = to_rgb(decode(tmp_path / "g.pgm", "g"), ends)
    np.testing.assert_array_equal(np.asarray(image)[..., 0], np.rint(values / white * 255))
    assert not facts_of(image)["clipped"]


def test_colours_of_16_bits_in_ppm_files_are_said(tmp_path):
    values = np.full((4, 4, 3), 4095, ">u2")
    (tmp_path / "c.ppm").write_bytes(b"P6 4 4 65535\n" + values.tobytes())
    assert facts_of(to_rgb(decode(tmp_path / "c.ppm", "c")))["deep"] in range(4096, 4353)  # rounded
    with pytest.raises(ValueError, match="its colours have 16 bits"):
        to_rgb(decode(tmp_path / "c.ppm", "c"), PixelOptions(PixelRange.parse("12")))
