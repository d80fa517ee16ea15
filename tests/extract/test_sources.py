"""Dataset sources: what is a sample, how they are split, what identifies them, and every way a folder can be wrong."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import image_batches
from featcache.extraction.decoding.rgb import to_rgb
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.dataset import SplitDataset
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.digits import Digits as DigitsSource
from featcache.extraction.sources.imagefolder import ImageFolder as FolderCollection
from featcache.extraction.sources.splits import (
    order_keys,
    split_off_test,
    split_off_test_groups,
    stratified_part,
)
from featcache.store.errors import DatasetError, RequestError, UnknownNameError


def ids(samples):
    return [sample.id for sample in samples]


def Digits(**options):  # noqa: N802
    return DigitsSource(DatasetOptions(**options))


def ImageFolder(directory, **options):  # noqa: N802
    chosen = DatasetOptions(**options)
    return SplitDataset(FolderCollection(directory, chosen), chosen)


# Names.


def test_sources_by_name(tmp_path):
    make_folder(tmp_path, "a/1.png", "a/2.png")
    assert isinstance(resolve_source("digits"), DigitsSource)
    assert resolve_source(f"imagefolder:{tmp_path}").class_names == ("a",)
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit'; did you mean digits"):
        resolve_source("digit")
    with pytest.raises(RequestError, match="imagefolder needs an argument: imagefolder:DIR"):
        resolve_source("imagefolder:")


# Digits.


@pytest.fixture(scope="module")
def digits():
    return Digits()


def test_digits_are_the_published_set(digits):
    """1,797 scans, 174 to 183 of every class: scikit-learn's documentation of `load_digits`."""
    train, test = digits.splits["train"], digits.splits["test"]
    assert sorted(ids([*train, *test])) == [f"digit-{row:04d}" for row in range(1797)]
    counts = Counter(sample.label for sample in [*train, *test])
    assert [counts[label] for label in range(10)] == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    for label, count in counts.items():
        assert abs(sum(s.label == label for s in test) - count / 4) <= 0.5
    assert digits.class_names == tuple("0123456789")


def test_digits_images_are_the_scans_at_full_contrast(digits):
    """The first published scan, a zero: the first rows of scikit-learn's 0..16 pixels, scaled to 0..255."""
    split = "train" if "digit-0000" in ids(digits.splits["train"]) else "test"
    image = digits.image(split, ids(digits.splits[split]).index("digit-0000"))
    assert (image.size, image.mode) == ((8, 8), "L")
    first_rows = np.array([[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0]])
    np.testing.assert_array_equal(np.asarray(image)[:2], np.rint(first_rows * 255 / 16))


def test_digits_depend_on_seed_and_limit_and_say_so(digits):
    seeded, part = Digits(split_seed=1), Digits(limit=50)
    assert ids(seeded.splits["test"]) != ids(digits.splits["test"])
    assert [len(samples) for samples in part.splits.values()] == [50, 50]
    identities = [source.identity for source in (digits, seeded, part)]
    assert identities[0] not in identities[1:]
    assert Digits().identity == digits.identity


def test_digits_identity_needs_neither_sklearn_nor_torch():
    code = (
        "import sys; from featcache.extraction.sources import resolve_source; resolve_source('digits').identity; "
        "print(sorted({'sklearn', 'torch', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_changed_digits_are_refused(monkeypatch):
    monkeypatch.setattr("featcache.extraction.sources.digits.DIGEST", "0" * 64)
    with pytest.raises(DatasetError, match="digits differ from the published set; reinstall scikit-learn"):
        _ = Digits().splits


# Splits.

CLASS_SIZES = st.lists(st.integers(2, 30), min_size=1, max_size=8)


def samples_of(sizes, rng=None):
    """Ids ``<label>/<number>`` and labels of classes of these sizes, in an order of their own."""
    names = [f"{label}/{i}" for label, size in enumerate(sizes) for i in range(size)]
    if rng is not None:
        rng.shuffle(names)
    return names, np.array([int(name.partition("/")[0]) for name in names])


def split(names, labels, seed):
    test = split_off_test(order_keys(names, seed), labels)
    return test, {name for name, chosen in zip(names, test, strict=True) if chosen}


@given(sizes=CLASS_SIZES, seed=st.integers(0, 5), rng=st.randoms())
def test_the_split_is_a_part_of_every_class(sizes, seed, rng):
    names, labels = samples_of(sizes, rng)
    test, _ = split(names, labels, seed)
    for label, size in enumerate(sizes):
        in_test = int(test[labels == label].sum())
        assert 1 <= in_test < size
        assert in_test == 1 or abs(in_test - size / 4) <= 0.5


@given(sizes=CLASS_SIZES, seed=st.integers(0, 5), rng=st.randoms())
def test_the_split_does_not_depend_on_the_order(sizes, seed, rng):
    assert split(*samples_of(sizes), seed)[1] == split(*samples_of(sizes, rng), seed)[1]


@given(sizes=CLASS_SIZES, label=st.integers(0, 7), seed=st.integers(0, 5))
def test_adding_a_file_moves_at_most_one_other_and_none_of_another_class(sizes, label, seed):
    """The counts are exact, so a file that enters the test part may push one other out."""
    label %= len(sizes)
    names, labels = samples_of(sizes)
    _, before = split(names, labels, seed)
    added = f"{label}/new"
    _, after = split([*names, added], np.append(labels, label), seed)
    moved = (before ^ after) - {added}
    assert len(moved) <= 1
    assert all(int(name.partition("/")[0]) == label for name in moved)


def test_seeds_give_different_splits_and_a_seed_the_same_on_every_machine():
    """The expected ids are the first two by SHA-256 over ``0:0/<i>``, so they depend on no library's generator."""
    parts = [split(*samples_of([8]), seed)[1] for seed in range(4)]
    assert len({frozenset(part) for part in parts}) > 1
    assert parts[0] == {"0/3", "0/5"}


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), data=st.data(), seed=st.integers(0, 5))
def test_a_stratified_part_is_in_proportion(sizes, data, seed):
    names, labels = samples_of(sizes)
    limit = data.draw(st.integers(len(sizes), len(names) + 3))
    part = stratified_part(order_keys(names, seed), labels, limit)
    assert part.sum() == min(limit, len(names))
    spare = max(len(names) - len(sizes), 1)
    for label, size in enumerate(sizes):
        count = int(part[labels == label].sum())
        assert 1 <= count <= size
        # One of each class, and the rest in proportion to what each has left.
        share = 1 + Fraction((int(part.sum()) - len(sizes)) * (size - 1), spare)
        assert abs(count - share) < 1


@settings(max_examples=30)
@given(sizes=CLASS_SIZES, seed=st.integers(0, 5))
def test_a_larger_part_of_a_class_holds_the_smaller(sizes, seed):
    names, labels = samples_of(sizes[:1])
    small, large = (stratified_part(order_keys(names, seed), labels, limit) for limit in (1, 2))
    assert (small <= large).all()
    assert small.sum() < large.sum()


def test_a_limit_below_the_number_of_classes():
    names, labels = samples_of([4, 4, 4])
    with pytest.raises(RequestError, match=r"^limit 2 is smaller than the number of classes \(3\); give at"):
        stratified_part(order_keys(names, 0), labels, 2)
    assert stratified_part(order_keys(names, 0), labels, 2, each=False).sum() == 2


@given(
    sizes=st.lists(st.integers(1, 9), min_size=8, max_size=60),
    num_classes=st.integers(1, 4),
    seed=st.integers(0, 5),
    rng=st.randoms(),
)
def test_groups_stay_together_and_every_class_stays_in_train(sizes, num_classes, seed, rng):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    strata = np.array([rng.randrange(num_classes) for _ in groups])
    test = split_off_test_groups(groups, [f"patient {g}" for g in range(len(sizes))], strata, seed)
    assert all(len(set(test[groups == group])) == 1 for group in range(len(sizes)))
    assert set(strata[~test]) == set(strata)
    # Nearer to a quarter than none would be, and than half.
    assert test.mean() < 0.5


# Folders.


def make_folder(root, *paths, size=(4, 4)):
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".png", ".jpg", ".JPG", ".tif"):
            Image.new("RGB", size, (number % 256, 0, 0)).save(file)
        else:
            file.write_text("not an image")
    return root


FLAT = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(8)]
SPLIT = ["train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/cat/3.png", "test/dog/4.png"]


def test_one_folder_is_split_by_class(tmp_path):
    source = ImageFolder(make_folder(tmp_path / "pets", *FLAT))
    assert (source.name, source.class_names) == ("pets", ("cat", "dog"))
    train, test = source.splits["train"], source.splits["test"]
    assert sorted(ids(train) + ids(test)) == sorted(FLAT)
    assert Counter(sample.label for sample in test) == {0: 2, 1: 2}
    assert all(sample.id.startswith(source.class_names[sample.label]) for sample in [*train, *test])
    assert ids(ImageFolder(tmp_path / "pets", split_seed=1).splits["test"]) != ids(test)


def test_a_relative_folder_keeps_its_name_and_place(tmp_path, monkeypatch):
    monkeypatch.chdir(make_folder(tmp_path / "pets", *FLAT))
    source = ImageFolder(Path("."))
    assert source.name == "pets"
    monkeypatch.chdir(tmp_path)
    assert source.image("train", 0).size == (4, 4)


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    source = ImageFolder(make_folder(tmp_path, *SPLIT, "val/cat/9.png"))
    assert ids(source.splits["train"]) == SPLIT[:3]
    assert ids(source.splits["test"]) == SPLIT[3:]
    assert [sample.label for sample in source.splits["test"]] == [0, 1]
    # The seed has nothing to do with it, unless a limit lets it choose.
    assert ImageFolder(tmp_path, split_seed=1).identity == source.identity
    part, other = (ImageFolder(tmp_path, split_seed=seed, limit=2) for seed in (0, 1))
    assert part.identity != other.identity


def test_test_may_lack_a_class_of_train(tmp_path):
    source = ImageFolder(make_folder(tmp_path, *SPLIT[:-1], "train/ant/1.png"))
    assert source.class_names == ("ant", "cat", "dog")
    assert [sample.label for sample in source.splits["test"]] == [1]


def test_nested_hidden_foreign_and_unicode_files(tmp_path):
    taken = ["a/deep/er/1.png", "a/ä 写真.JPG", "b/ß🙂.tif", "b/2.png"]
    passed_over = [".git/x.png", "a/.hidden.png", "a/.thumbs/1.png", "a/notes.txt", "a/labels", "readme.md"]
    source = ImageFolder(make_folder(tmp_path, *taken, *passed_over))
    assert source.class_names == ("a", "b")
    rows = [(split, row) for split in source.splits for row in range(len(source.splits[split]))]
    assert sorted(source.splits[split][row].id for split, row in rows) == sorted(taken)
    assert all(source.image(split, row).size == (4, 4) for split, row in rows)


def test_identity_is_content_and_not_place(tmp_path):
    first, copy = make_folder(tmp_path / "one", *FLAT), tmp_path / "another name"
    shutil.copytree(first, copy)
    identity = ImageFolder(first).identity
    assert ImageFolder(copy).identity == identity
    link = tmp_path / "link"
    link.symlink_to(copy)
    assert ImageFolder(link).identity == identity
    assert str(tmp_path) not in repr(identity)


def test_identity_changes_with_what_changes_features_or_rows(tmp_path):
    root = make_folder(tmp_path, *FLAT)
    seen = [ImageFolder(root).identity]

    def is_new(**options):
        identity = ImageFolder(root, **options).identity
        assert identity not in seen
        seen.append(identity)

    is_new(split_seed=1)
    is_new(limit=4)
    is_new(limit=5)
    is_new(limit=4, split_seed=1)
    Image.new("RGB", (40, 40)).save(root / FLAT[0])
    is_new()
    (root / FLAT[0]).rename(root / "cat" / "renamed.png")
    is_new()
    (root / "cat").rename(root / "kitten")
    is_new()
    (root / "dog" / "1.png").rename(root / "kitten" / "dog-1.png")
    is_new()
    (root / "kitten" / "dog-1.png").unlink()
    is_new()


def test_identity_of_own_splits_knows_which_is_which(tmp_path):
    one = make_folder(tmp_path / "one", *SPLIT)
    swapped = make_folder(tmp_path / "swapped")
    shutil.copytree(one / "train", swapped / "test")
    shutil.copytree(one / "test", swapped / "train")
    assert ImageFolder(one).identity != ImageFolder(swapped).identity


def test_a_limit_is_taken_from_both_parts(tmp_path):
    source = ImageFolder(make_folder(tmp_path, *FLAT), limit=3)
    assert [len(part) for part in source.splits.values()] == [3, 3]
    with pytest.raises(RequestError, match="limit 1 is smaller than the number of classes"):
        ImageFolder(tmp_path, limit=1)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "{root} has no class folders; it needs one folder of images per class"),
        (
            ["a/1.png", "b/notes.txt", "c/.2.png"],
            "{root}: no images in class folder b (1 .txt), c (1 hidden files); add images or remove the folder",
        ),
        (["a/1.png", "a/2.png", "b/1.png"], "class 'b' has a single image"),
        (["train/a/1.png"], "{root} has no test/ folder; it needs both train/ and test/, or neither"),
        (["test/a/1.png"], "{root} has no train/ folder; it needs both train/ and test/, or neither"),
        (["train/1.png", "test/a/1.png"], "{root}/train has no class folders"),
        (["train/a/1.png", "test/a/x.txt"], "{root}/test: no images in class folder a"),
        (
            ["train/a/1.png", "test/a/1.png", "test/b/1.png"],
            "{root}: test has classes that train lacks: b; class folders must have the same names",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/Cat/1.png", "test/dog/1.png"],
            "{root}: test has classes that train lacks: Cat (train has, and test lacks: cat); class folders",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, paths, message):
    make_folder(tmp_path, *paths)
    with pytest.raises(DatasetError, match=re.escape(message.format(root=tmp_path))):
        ImageFolder(tmp_path)


def test_a_missing_folder(tmp_path):
    make_folder(tmp_path, "file.png")
    for missing in (tmp_path / "nowhere", tmp_path / "file.png"):
        with pytest.raises(RequestError, match=f"^image folder {missing} does not exist or is not a folder$"):
            ImageFolder(missing)


def test_a_link_whose_file_is_gone_is_named(tmp_path):
    link = make_folder(tmp_path, *FLAT) / "cat" / "gone.png"
    link.symlink_to("nowhere")
    with pytest.raises(DatasetError, match=f"^{link} cannot be read .*; restore the file or remove it$"):
        ImageFolder(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    folder = make_folder(tmp_path, *FLAT) / "cat"
    shutil.copy(folder / "0.png", os.fsencode(folder) + b"/\xff.png")
    with pytest.raises(DatasetError, match=r"the file name 'cat/\\udcff.png' is not valid UTF-8; rename"):
        ImageFolder(tmp_path)


# Images.


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_image_that_does_not_decode_is_named(tmp_path, suffix, damage):
    make_folder(tmp_path, f"train/a/1{suffix}", f"test/a/2{suffix}", size=(64, 64))
    file = tmp_path / f"train/a/1{suffix}"
    content = {"empty": b"", "text": b"not an image", "half": file.read_bytes()[: file.stat().st_size // 2]}
    file.write_bytes(content[damage])
    with pytest.raises(DatasetError) as caught:
        ImageFolder(tmp_path).image("train", 0)
    assert re.fullmatch(
        re.escape(f"image {file} does not decode (") + r".+\)",
        str(caught.value),
    )
    assert str(caught.value).count(str(tmp_path)) == 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # Pillow's, of damaged files
@settings(max_examples=60, deadline=None)
@given(data=st.data(), suffix=st.sampled_from([".jpg", ".png", ".tif", ".gif", ".webp", ".bmp"]))
def test_damaged_bytes_never_raise_anything_else(tmp_path_factory, data, suffix):
    root = tmp_path_factory.mktemp("damaged")
    file = make_folder(root, "train/a/1.png", "test/a/2.png") / f"train/a/0{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    content = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    # A damaged header may ask for gigabytes.
    with patch.object(Image, "MAX_IMAGE_PIXELS", 10_000), suppress(DatasetError):
        to_rgb(ImageFolder(root).image("train", 0))


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def palette(transparency=None):
    image = Image.fromarray(GREY).convert("P")
    image.putpalette([value for grey in range(256) for value in (grey, grey, grey)])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("RGBA"),
        Image.fromarray(np.stack([GREY, 255 - GREY], 2)),
        palette(),
        palette(3),
        palette(bytes(range(256))),
        Image.fromarray(GREY.astype(np.uint16) * 256 + 77),
    ],
    ids=[
        "grey",
        "rgba",
        "grey-alpha",
        "palette",
        "palette-colour",
        "palette-alpha",
        "16-bit",
    ],
)
def test_every_mode_becomes_the_same_rgb(tmp_path, image):
    """Transparency is dropped, and of 16 bits the upper 8 are kept."""
    wanted = np.repeat(GREY[:, :, None], 3, 2)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), wanted)
    name = "1.png"
    make_folder(tmp_path, "train/a/0.txt", "test/a/2.png")
    image.save(tmp_path / "train" / "a" / name)
    np.testing.assert_array_equal(np.asarray(to_rgb(ImageFolder(tmp_path).image("train", 0))), wanted)


@pytest.mark.parametrize(
    "pixels", [GREY / np.float32(255), GREY.astype(np.int32) * 1000, -GREY.astype(np.int32)]
)
def test_pixels_of_unknown_range_are_refused_by_name(tmp_path, pixels):
    make_folder(tmp_path, "train/a/0.txt", "test/a/2.png")
    Image.fromarray(pixels).save(tmp_path / "train" / "a" / "1.tif")
    source = ImageFolder(tmp_path)
    [batch] = image_batches(source, np.asarray, [Rows("train", 0, 1)], workers=0, size=16)
    [(row, message)] = batch.failures
    assert row == 0
    assert not batch.images.any()
    assert message.startswith(f"image 'train/a/1.tif': its pixels are {pixels.dtype} with values ")
    assert "--pixel-range" in message
