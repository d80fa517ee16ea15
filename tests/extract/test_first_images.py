"""Warnings on the first images of a run: faults that are known to cost accuracy, and no alarm on sets that look unusual."""

import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.decoding.first_images import LOOKED_AT, FirstImages, watched
from featcache.extraction.decoding.images import BatchLoader, image_batches
from featcache.extraction.decoding.preprocessing import with_resize
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.pixels import FACTS
from featcache.extraction.sources.sequences import python_dataset
from featcache.store.spec import PILLOW

SIZE = 48
TRANSFORM = with_resize(timm.data.create_transform(SIZE, interpolation="bicubic"), PILLOW)
RANDOM = np.random.default_rng(0)


def photo(low=0, high=255, shape=(60, 70), deep=np.uint8):
    """A picture with structure at all scales, with values from `low` to `high`."""
    picture = sum(
        np.asarray(
            Image.fromarray(RANDOM.random((n, n)).astype(np.float32)).resize(
                shape[::-1], Image.Resampling.BICUBIC
            )
        )
        / n
        for n in (2, 4, 9, 20)
    )
    picture = (picture - picture.min()) / np.ptp(picture)
    return (low + picture * (high - low)).round().astype(deep)


def warning_of(images, options=None, count=24):
    pixels = [images() for _ in range(count)]
    source = python_dataset(
        [(pixel, row % 2) for row, pixel in enumerate(pixels)],
        name="made",
        options=options or DatasetOptions(),
    )
    lines = []
    load = BatchLoader(source, TRANSFORM, SIZE)
    rows = [
        Rows("train", start, min(start + 8, len(source.splits["train"])))
        for start in range(0, len(source.splits["train"]), 8)
    ]
    assert len(list(watched(map(load, rows), source.pixels.pixel_range, lines.append))) == len(rows)
    assert len(lines) <= 1
    return lines[0] if lines else None


def test_ten_bits_in_sixteen_name_the_range_to_give():
    text = warning_of(lambda: photo(0, 1000, deep=np.uint16))
    assert text.startswith("warning: the first 18 images are nearly black: their values reach 3 of 255")
    assert "16-bit values up to 1,000 are read as 0 to 65535: --pixel-range 10 reads 0 to 1023" in text
    assert warning_of(lambda: photo(0, 1000, deep=np.uint16), DatasetOptions(pixel_range="10")) is None
    assert "--pixel-range 14" in warning_of(lambda: photo(0, 16383, deep=np.uint16))
    assert warning_of(lambda: photo(0, 65535, deep=np.uint16)) is None


def test_images_scaled_to_one_and_masks_are_nearly_black():
    for highest in (1, 20):
        text = warning_of(lambda highest=highest: photo(0, highest))
        assert f"nearly black: their values reach {highest} of 255" in text
        assert "were they scaled to values from 0 to 1, or are they masks?" in text


def test_floats_that_were_normalized_already():
    def image():
        pixels = np.stack([photo()] * 3, -1) / 255
        return ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)

    for given in ("0..1", "0..255", "-1..1"):
        text = warning_of(image, DatasetOptions(pixel_range=given))
        assert (
            f"have values outside of --pixel-range {given}, which become black or white; if they are normalized already"
            in text
        )
    assert warning_of(image, DatasetOptions(pixel_range="-2.2..2.7")) is None


def test_a_range_that_is_too_wide_is_asked_about():
    def image():
        return (photo() / 255).astype(np.float32)

    assert "is --pixel-range 0..255 right for them?" in warning_of(
        image, DatasetOptions(pixel_range="0..255")
    )
    assert warning_of(image, DatasetOptions(pixel_range="0..1")) is None


def test_images_without_a_picture():
    assert "18 images are of one color each" in warning_of(
        lambda: np.full((20, 30), RANDOM.integers(256), np.uint8)
    )
    assert "hardly any contrast: the values of an image span" in warning_of(lambda: photo(110, 130))
    assert "nearly white: their values begin at 23" in warning_of(lambda: photo(230, 255))
    same = photo()
    assert "are all the same picture" in warning_of(lambda: same)
    assert warning_of(lambda: same, count=6) is None


def digit():
    """A handwritten digit in the manner of MNIST: nine tenths of it are black."""
    image = np.zeros((28, 28), np.uint8)
    image[6:22, 12:15] = RANDOM.integers(180, 256)
    return np.asarray(Image.fromarray(image).rotate(int(RANDOM.integers(-30, 30))))


def xray():
    return photo(30, RANDOM.integers(150, 220))


def stars():
    """A dark field with a few bright spots."""
    image = np.zeros((80, 80), np.uint8)
    image[RANDOM.integers(0, 80, 9), RANDOM.integers(0, 80, 9)] = 255
    return np.asarray(Image.fromarray(image).resize((60, 60), Image.Resampling.BOX))


def scan():
    """A page of text: black on white, and nothing between."""
    image = np.full((80, 80), 255, np.uint8)
    image[10:70:6, RANDOM.integers(5, 20) : 70] = 0
    return image


def window():
    """CT values under a window, which cuts most of them off on purpose."""
    return photo(-1000, 1000, deep=np.int16)


def some_blank():
    return np.zeros((30, 30), np.uint8) if RANDOM.random() < 0.5 else photo()


@pytest.mark.parametrize(
    ("images", "options"),
    [
        *((images, {}) for images in (photo, digit, xray, stars, scan, some_blank)),
        (window, {"pixel_range": "-160..240"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sets_that_are_unusual_and_right_raise_no_alarm(images, options):
    assert warning_of(images, DatasetOptions(**options), count=60) is None


def test_the_digits_raise_no_alarm():
    source = resolve_source("digits")
    batches = image_batches(source, TRANSFORM, [Rows("train", 0, 128)], 0, SIZE)
    lines = []
    list(watched(batches, None, lines.append))
    assert not lines


def batch_of(images, failures=()):
    count = len(images)
    content = torch.from_numpy(RANDOM.integers(0, 256, (count, 16), np.uint8))
    facts = torch.zeros(count, len(FACTS), dtype=torch.int64)
    return ImageBatch(images, content, [(row, "x") for row in failures], facts, [])


def test_one_line_a_run_whenever_batches_end():
    dark = torch.full((32, 3, 8, 8), 1, dtype=torch.uint8)
    dark[:, :, 0] = 9
    lines = []
    for count in range(1, 8):
        lines.clear()
        batches = watched((batch_of(dark) for _ in range(count)), None, lines.append)
        for _ in range(count):
            next(batches)  # as a run does, which asks for no batch after the last one
        assert len(lines) == int(count * 32 >= LOOKED_AT)
        batches.close()
        assert len(lines) == 1


def test_images_that_failed_and_other_preprocessing_are_left_out():
    first = FirstImages(None)
    first.add(batch_of(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), failures=range(4)))
    assert first.warning() is None
    bright = (
        (torch.arange(8 * 64, dtype=torch.int64) * 5 % 256)
        .to(torch.uint8)
        .reshape(8, 1, 8, 8)
        .repeat(1, 3, 1, 1)
    )
    bright[:6] = 0
    first.add(batch_of(bright, failures=range(6)))
    assert first.warning() is None
    floats = FirstImages(None)
    floats.add(batch_of(torch.zeros(9, 3, 8, 8)))
    assert floats.warning() is None


def test_the_warning_comes_before_the_pass_is_over(tmp_path):
    from featcache.extraction.requests.request import ExtractRequest
    from featcache.extraction.run import dry_run

    from .test_freshness import MODEL, Told

    for index in range(8):
        path = tmp_path / "d" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.fromarray(photo(0, 900, deep=np.uint16)).save(file, "PNG")
        path.write_bytes(file.getvalue())
    weights = tmp_path / "w.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    told = Told()
    request = ExtractRequest(MODEL, f"imagefolder:{tmp_path / 'd'}", weights=weights, workers=0, device="cpu")
    dry_run(request, [tmp_path / "root"], reporter=told)
    assert [line for line in told.lines if line.startswith("warning: the first 6 images are nearly black")]
