"""What is said of a run: the line on the dataset, the line on preprocessing, and what only decoding can tell."""

import numpy as np
import pytest
from PIL import Image

from featcache.extraction.decoding.observed import Observed
from featcache.extraction.provenance.summary import dataset_summary
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.pixels import FACTS
from featcache.store.preprocessing import preprocessing_text


def facts(**values: int) -> list[int]:
    return [values.get(name, 0) for name in FACTS]


def test_facts_are_counted_over_batches():
    observed = Observed()
    observed.add(np.array([facts(turned=6), facts(), facts(deep=1024)]))
    observed.add(np.array([facts(deep=1), facts(alpha=1, frames=1)]))
    assert observed.to_dict() == {
        "images": 5,
        "turned": 1,
        "alpha": 1,
        "frames": 1,
        "deep": 2,
        "largest_16_bit_value": 1023,
    }
    assert list(observed.notes(upright=False)) == [
        "1 image has an EXIF orientation and was not turned (--exif makes a cache with images upright)",
        "1 image has transparency, which is dropped",
        "1 image has several pages or frames, of which the first is taken",
        "2 images have 16-bit pixels with values up to 1023 only, which were taken as 0 to 65535 and are dark; if white is "
        "less, say so (--pixel-range 10 is 0 to 1023)",
    ]
    assert next(observed.notes(upright=True)).endswith("EXIF orientation and was turned upright")


def test_nothing_is_said_of_usual_images():
    observed = Observed()
    observed.add(np.array([facts(), facts(deep=65536)]))
    assert list(observed.notes(upright=False)) == []
    assert observed.to_dict() == {"images": 2, "deep": 1, "largest_16_bit_value": 65535}


def make_folder(root, classes, images):
    for name in classes:
        (root / name).mkdir()
        for index in range(images):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(root / name / f"{index}.png")
    return f"imagefolder:{root}"


def test_the_line_on_a_dataset_has_samples_classes_and_split(tmp_path):
    name = make_folder(tmp_path, "abc", 4)
    source = resolve_source(name)
    assert dataset_summary(source, ["train", "test"]) == (
        "12 images, 3 classes (a, b, c), split 75/25 by featcache (9 train, 3 test)"
    )
    assert dataset_summary(source, ["test"]).startswith("3 images, 3 classes (a, b, c)")
    limited = resolve_source(name, DatasetOptions(limit=3))
    assert dataset_summary(limited, ["train"]).endswith("by featcache (3 train); limited to 3 a split")


def test_the_line_on_a_dataset_has_what_was_passed_over(tmp_path):
    source = resolve_source(make_folder(tmp_path, "ab", 4))
    source._collection.listing.passed_over = {".txt": 12, ".heic": 3}
    assert "; 15 files passed over: .txt 12, .heic 3" in dataset_summary(source, ["train"])


@pytest.mark.parametrize(
    ("preprocessing", "text"),
    [
        (
            {"library": "timm", "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"},
            "images are resized to 256 px on the shorter side (bicubic) and cropped to 224 x 224",
        ),
        (
            {"library": "timm", "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"},
            "images are resized to 224 x 224 (bilinear, whatever their shape)",
        ),
        (
            {"library": "open_clip", "interpolation": "bicubic", "resize_mode": "shortest"},
            "images are resized to 224 px on the shorter side (bicubic) and cropped to 224 x 224",
        ),
        ({"of": "another form"}, None),
    ],
)
def test_the_line_on_preprocessing(preprocessing, text):
    assert preprocessing_text(preprocessing, (224, 224)) == text
