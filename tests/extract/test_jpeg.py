"""JPEG files by torchvision and by Pillow alone: the same pixels, digests, facts and errors, for every form of file."""

import io
import random

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from featcache.extraction.decoding import jpeg
from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import BatchLoader, image_batches
from featcache.extraction.decoding.jpeg import jpeg_decoder
from featcache.extraction.decoding.preprocessing import with_resize
from featcache.extraction.decoding.rgb import to_rgb, turned_upright
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.decode import decode, jpegs_decoded_by, pixel_limit
from featcache.extraction.sources.decoded_jpeg import DecodedJpeg
from featcache.store.errors import DatasetError
from featcache.store.spec import PILLOW, UINT8_ANTIALIAS

from .test_preprocessing import photo

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

ORIENTATION = 0x0112


def turned():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return exif


FORMS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True, "quality": 40},
    "restarts": {"restart_marker_blocks": 3},
    "RGB inside": {"keep_rgb": True},
    "EXIF": {"exif": turned()},
    "grey": {"mode": "L"},
    "grey, progressive": {"mode": "L", "progressive": True},
}
PILLOWS = {"CMYK": {"mode": "CMYK"}}


def encoded(size, seed=0, mode="RGB", **options) -> bytes:
    file = io.BytesIO()
    photo(size, seed).convert(mode).save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


def both(data: bytes):
    """The image by Pillow alone, and with the other decoder; messages where it does not decode."""
    images = []
    for decoder in (None, jpeg_decoder()):
        with jpegs_decoded_by(decoder):
            try:
                images.append(decode(io.BytesIO(data), "x"))
            except DatasetError as error:
                images.append(str(error))
    return images


@pytest.mark.parametrize("form", [*FORMS, *PILLOWS])
def test_every_form_gives_pillows_pixels(form):
    for seed, size in enumerate([(500, 375), (61, 43), (16, 16), (1, 1), (7, 130)]):
        plain, ours = both(encoded(size, seed, **(FORMS | PILLOWS)[form]))
        assert isinstance(ours, DecodedJpeg) == (form in FORMS)
        assert (ours.mode, ours.size, ours.format) == (plain.mode, plain.size, "JPEG")
        assert dict(ours.getexif()) == dict(plain.getexif())
        for turn in (lambda image: image, turned_upright):
            theirs, rgb = turn(to_rgb(plain)), turn(to_rgb(ours))
            np.testing.assert_array_equal(np.asarray(rgb), np.asarray(theirs))
            assert rgb.info["featcache"] == theirs.info["featcache"]
        assert np.array_equal(np.asarray(ours.resize((9, 9))), np.asarray(plain.resize((9, 9))))


def test_damaged_files_give_the_same_pixels_or_the_same_error():
    chance, outcomes = random.Random(0), {"pixels": 0, "error": 0}
    for seed in range(150):
        data = bytearray(encoded((64, 48), seed, **chance.choice(list(FORMS.values()))))
        place = chance.randrange(2, len(data))
        if seed % 3 == 0:
            del data[place:]
        elif seed % 3 == 1:
            data[place] = chance.randrange(256)
        else:
            del data[place : place + chance.randrange(1, 30)]
        plain, ours = both(bytes(data))
        if isinstance(plain, str):
            assert ours == plain
            outcomes["error"] += 1
        else:
            np.testing.assert_array_equal(np.asarray(to_rgb(ours)), np.asarray(to_rgb(plain)))
            outcomes["pixels"] += 1
    assert min(outcomes.values()) > 20


def test_files_of_many_pixels_are_refused_alike():
    with pixel_limit(1000):
        plain, ours = both(encoded((50, 50)))
    assert plain == ours
    assert "at most 1,000 are read" in ours


@pytest.mark.parametrize("resize", [PILLOW, UINT8_ANTIALIAS])
def test_workers_give_what_pillow_gives_in_this_process(tmp_path, resize, capfd):
    (tmp_path / "a").mkdir()
    for index, options in enumerate((FORMS | PILLOWS).values()):
        (tmp_path / "a" / f"{index:02}.jpg").write_bytes(encoded((90, 70), index, **options))
    (tmp_path / "a" / "98.jpg").write_bytes(encoded((90, 70))[:900])
    photo((90, 70)).save(tmp_path / "a" / "99.png")
    source = resolve_source(f"imagefolder:{tmp_path}", DatasetOptions())
    transform = with_resize(timm.data.create_transform(32, interpolation="bicubic"), resize)
    rows = [Rows(split, 0, len(samples)) for split, samples in source.splits.items()]
    for got, part in zip(image_batches(source, transform, rows, 1, 32), rows, strict=True):
        wanted = BatchLoader(source, transform, 32)(part)
        assert torch.equal(got.images, wanted.images)
        assert torch.equal(got.content, wanted.content)
        assert torch.equal(got.facts, wanted.facts)
        assert got.failures == wanted.failures
    assert capfd.readouterr().err == ""


def test_a_decoder_with_other_pixels_is_not_taken(monkeypatch):
    plain = jpeg._decode
    monkeypatch.setattr(jpeg, "_decode", lambda data: plain(data) ^ np.uint8(1))
    assert jpeg_decoder.__wrapped__() is None
    monkeypatch.setattr(jpeg, "_decode", lambda data: None)
    assert jpeg_decoder.__wrapped__() is None
