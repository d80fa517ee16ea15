"""Channels other than three: whatever an image loses on its way to RGB is counted or refused, in every form of dataset."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image

from featcache.extraction.decoding.rgb import rgb_image, to_rgb
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.decode import decode
from featcache.extraction.sources.pixels import facts_of
from featcache.extraction.sources.sequences import python_dataset
from featcache.store.errors import DatasetError
from support.tiff_files import tiff_file

RANDOM = np.random.default_rng(0)
TIFFS = [
    (channels, dtype, planes, deflate, extra, grey)
    for channels, dtype, planes, deflate, extra, grey in product(
        (1, 2, 3, 4, 5, 6, 13),
        (np.uint8, np.uint16),
        (False, True),
        (False, True),
        (None, 0, 2),
        (False, True),
    )
    if not (grey and channels < 3) and not (extra is not None and channels in (1, 3) and not grey)
]


def noise(channels, dtype=np.uint8):
    return RANDOM.integers(0, np.iinfo(dtype).max, (10, 12, channels)).astype(dtype)


def eight_bits(pixels):
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def decoded(content):
    """The image, or the error in its place."""
    try:
        return decode(io.BytesIO(content), "x"), ""
    except DatasetError as error:
        return None, str(error)


@pytest.mark.parametrize("form", TIFFS, ids=str)
def test_a_tiff_file_is_read_right_or_says_what_it_loses_or_is_refused(form, capfd):
    channels, dtype, planes, deflate, extra, grey = form
    pixels = noise(channels, dtype)
    content = tiff_file(pixels, extra, planes=planes, deflate=deflate, grey=grey)
    image, problem = decoded(content)
    assert capfd.readouterr().err == ""
    if image is None:
        assert channels not in (1, 3) or grey
        assert "not an image" not in problem
        return
    rgb = to_rgb(image)
    colours = 3 if channels >= 3 and not grey else 1
    wanted = np.broadcast_to(eight_bits(pixels[..., :colours]), (10, 12, 3))
    if image.mode not in ("La", "RGBa"):  # multiplied with transparency
        np.testing.assert_array_equal(np.asarray(rgb), wanted)
    lost = {name for name, value in facts_of(rgb).items() if value} & {"channels", "alpha"}
    assert bool(lost) == (channels > colours)
    assert bool(facts_of(rgb).get("deep")) == (dtype == np.uint16)


def test_an_unread_tiff_file_tells_its_form():
    for channels, dtype, text in (
        (8, np.uint16, "8 channels of 16-bit integers"),
        (13, np.uint8, "13 channels of 8-bit integers"),
    ):
        with pytest.raises(DatasetError) as caught:
            decode(io.BytesIO(tiff_file(noise(channels, dtype), 0)), "x")
        assert f"it is a TIFF file of {text}, which Pillow does not read; convert it" in str(caught.value)
    with pytest.raises(DatasetError, match="of 4 channels of 32-bit floating point"):
        decode(io.BytesIO(tiff_file(noise(4).astype(np.float32), 0)), "x")
    for damaged in (b"II*\0", b"II*\0" + b"\xff" * 20, b"MM\0*\0\0\0\x08" + bytes(9)):
        with pytest.raises(DatasetError, match="does not decode"):
            decode(io.BytesIO(damaged), "x")


@pytest.mark.parametrize(
    ("mode", "fact"),
    [
        ("LA", "alpha"),
        ("La", "alpha"),
        ("RGBA", "alpha"),
        ("RGBa", "alpha"),
        ("PA", "alpha"),
        ("RGBX", "channels"),
    ],
)
def test_images_of_pillow_with_a_further_channel_say_so(mode, fact):
    assert facts_of(to_rgb(Image.new(mode, (4, 4))))[fact] == 1


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG2000", "TIFF", "AVIF", "TGA"])
def test_files_with_a_further_channel_say_so(form, mode):
    if form in ("WEBP", "AVIF") and mode == "LA":
        pytest.skip("stored as RGBA")
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 255, (16, 16, len(mode)), np.uint8), mode).save(file, form)
    assert facts_of(to_rgb(decode(io.BytesIO(file.getvalue()), "x")))["alpha"] == 1


LABELS = np.arange(8) % 2


def as_npz(pixels, folder):
    np.savez(folder / "d.npz", images=pixels, labels=LABELS)
    return resolve_source(f"npz:{folder / 'd.npz'}")


def as_hdf5(pixels, folder):
    import h5py

    with h5py.File(folder / "d.h5", "w") as file:
        file["images"], file["labels"] = pixels, LABELS
    return resolve_source(f"hdf5:{folder / 'd.h5'}?images=images&labels=labels")


def as_sequence(pixels, folder):
    return python_dataset(
        [(image, int(label)) for image, label in zip(pixels, LABELS, strict=True)], name="made"
    )


@pytest.mark.parametrize("source_of", [as_npz, as_hdf5, as_sequence])
@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_arrays_with_other_channels_are_refused_or_say_what_is_left_out(source_of, channels, first, tmp_path):
    pixels = RANDOM.integers(0, 255, (8, 12, 14, channels), np.uint8)
    given = np.moveaxis(pixels, -1, 1) if first else pixels
    if channels != 4:
        with pytest.raises(DatasetError, match=r"an image has 1, 3, 4 channels|is no image"):
            rgb_image(source_of(given, tmp_path), "train", 0)
        return
    source = source_of(given, tmp_path)
    image = rgb_image(source, "train", 0)
    row = int(source.splits["train"][0].id)
    np.testing.assert_array_equal(np.asarray(image), pixels[row, ..., :3])
    assert facts_of(image)["alpha"] == 1
    assert source_of is as_sequence or any(
        "of 4 channels the last is taken for transparency" in note for note in source.notes
    )
