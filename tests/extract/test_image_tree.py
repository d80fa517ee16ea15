"""Folders as people have them: splits by any name, classes called like splits, system files, pipes, loops, loose images."""

import hashlib
import os
import re
import socket
import sys
import unicodedata

import pytest
from PIL import Image

from featcache.extraction.sources import image_tree, resolve_source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.store.errors import DatasetError, FeatcacheError, RequestError, UnknownNameError


def make(root, *paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith((".png", ".jpg", ".jfif")):
            form = "PNG" if path.endswith("png") else "JPEG"
            Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(root / path, form)
        else:
            (root / path).write_bytes(b"x")
    return root


def classes(*splits, names=("cat", "dog"), count=2):
    return [f"{split}/{name}/{i}.png".lstrip("/") for split in splits for name in names for i in range(count)]


def open_it(root, fields="", **options):
    return resolve_source(f"imagefolder:{root}{fields}", DatasetOptions(**options))


def split_ids(source):
    return {split: [sample.id for sample in part] for split, part in source.splits.items()}


def refused(root, kind: type[FeatcacheError], message, **options):
    with pytest.raises(kind) as caught:
        open_it(root, **options)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("TRAIN", "TEST"), ("training", "testing"), ("train_data", "test-set"), ("tr", "te")],
)
def test_splits_in_any_spelling_are_splits_and_no_classes(tmp_path, train, test):
    source = open_it(make(tmp_path, *classes(train, test)))
    assert source.class_names == ("cat", "dog")
    assert split_ids(source) == {"train": sorted(classes(train)), "test": sorted(classes(test))}
    assert source.identity["split_seed"] is None
    assert f"splits of {tmp_path.name}: {train} is train, {test} is test" in source.notes
    flat = open_it(tmp_path, "?splits=none")
    assert flat.class_names == tuple(sorted((train, test)))
    assert flat.identity["digest"] != source.identity["digest"]


def test_the_usual_spelling_keeps_its_identity(tmp_path):
    source = open_it(make(tmp_path, *classes("train", "test"), "docs/a.txt"))
    paths = sorted(classes("train", "test"))
    entries = [f"{path}\0{(tmp_path / path).stat().st_size}\0{int('dog' in path)}\n" for path in paths]
    digest = hashlib.sha256(("cat\0dog\n" + "".join(entries)).encode()).hexdigest()
    assert source.identity == {"kind": "imagefolder", "digest": digest, "split_seed": None, "limit": None}
    assert list(source.notes) == ["not read: split docs (--test-split)"]


def test_a_validation_split_alone_is_for_no_one_to_guess(tmp_path):
    make(tmp_path, *classes("Training", "Validation"))
    refused(tmp_path, DatasetError, r"it needs both train/ and test/, or neither; --test-split Validation")
    source = open_it(tmp_path, test_splits=("val",))
    assert split_ids(source)["test"] == sorted(classes("Validation"))
    assert source.identity["test_splits"] == ["Validation"]
    assert len(open_it(tmp_path, resplit=True).splits["train"]) == 6


def test_a_class_may_be_called_train(tmp_path):
    source = open_it(make(tmp_path, *classes("", names=("bus", "car", "train"), count=4)))
    assert source.class_names == ("bus", "car", "train")
    assert any("train of" in note and "taken for classes" in note for note in source.notes)
    nested = make(tmp_path / "nested", *classes("train", "bus"))
    refused(nested, DatasetError, r"has no test/ folder; .*--test-split: bus; .*imagefolder:DIR\?splits=none")
    assert open_it(nested, "?splits=none").class_names == ("bus", "train")
    with pytest.raises(RequestError, match="splits of imagefolder must be none, got 'all'"):
        open_it(nested, "?splits=all")


def test_splits_with_a_common_word_are_splits(tmp_path):
    source = open_it(make(tmp_path, *classes("seg_train", "seg_test", "seg_pred")))
    assert source.class_names == ("cat", "dog")
    assert f"splits of {tmp_path.name}: seg_train is train, seg_test is test" in source.notes


def test_splits_below_the_classes_are_refused(tmp_path):
    root = make(tmp_path / "a", *classes("cat", "dog", names=("train", "test")))
    refused(
        root,
        DatasetError,
        r"a/cat has folders test, train, which are called like splits; .*above the classes",
    )
    assert open_it(root, "?splits=none").class_names == ("cat", "dog")
    root = make(tmp_path / "b", *[f"photos/{path}" for path in classes("train", "test")])
    refused(root, DatasetError, r"or is imagefolder:.*/b/photos meant\?")
    root = make(tmp_path / "c", *[f"photos/{path}" for path in classes("")])
    assert any(
        "c has the one class photos, whose images lie in folders (cat, dog, ...)" in n
        for n in open_it(root).notes
    )
    alone = open_it(make(tmp_path / "d", *classes("train", "test")) / "train")
    assert "only train is read; beside it lies test" in alone.notes


def test_links_to_nowhere_are_no_missing_class(tmp_path):
    root = make(tmp_path, *classes(""))
    (root / "bird").symlink_to("/nowhere/bird")
    refused(
        root, DatasetError, "/bird is a link to something that is not there; restore it, or remove the link"
    )
    (root / "bird").rename(root / "cat" / "more")
    refused(root, DatasetError, "/cat/more is a link to something that is not there")


def test_languages_are_no_splits(tmp_path):
    assert open_it(make(tmp_path, *classes("tr", "de", "te"))).class_names == ("de", "te", "tr")


def test_splits_of_other_names_are_named(tmp_path):
    make(tmp_path, *classes("a", "b"))
    source = open_it(tmp_path, train_split="a", test_splits=("b",))
    assert split_ids(source) == {"train": sorted(classes("a")), "test": sorted(classes("b"))}
    refused(tmp_path, UnknownNameError, "unknown split 'c'", test_splits=("c",))
    refused(
        make(tmp_path / "two", *classes("train", "Train", "test")),
        DatasetError,
        "more than one split for train",
    )


def test_other_extensions_are_read_or_counted(tmp_path):
    root = make(
        tmp_path,
        *classes(""),
        "cat/a.JPG".lower(),
        "cat/b.jfif",
        "cat/notes.txt",
        "cat/c.xyz",
        "cat/bare",
        "cat/.h.png",
    )
    (root / "cat/a.jpg").rename(root / "cat/a.JPG")
    listing = open_it(root)._collection.listing
    assert {"cat/a.JPG"} <= set(listing.ids)
    assert listing.passed_over == {".txt": 1, ".xyz": 1, "no extension": 1, "hidden files": 1} | (
        {} if "cat/b.jfif" in set(listing.ids) else {".jfif": 1}
    )


def test_thumbnails_of_file_servers_are_no_samples(tmp_path):
    root = make(
        tmp_path,
        *classes(""),
        *(
            "@eaDir/0.png",
            "cat/@eaDir/0.png/thumb.png",
            "cat/.AppleDouble/0.png",
            "cat/._0.png",
            "cat/Thumbs.db",
        ),
        *("__MACOSX/cat/0.png", "#recycle/0.png"),
    )
    source = open_it(root)
    assert (source.class_names, len(source._collection.listing.ids)) == (("cat", "dog"), 4)
    assert source._collection.listing.passed_over == {}


def test_loose_images_are_said(tmp_path):
    source = open_it(make(tmp_path, *classes(""), "1.png", "2.png"))
    assert source._collection.listing.passed_over == {"images beside the class folders": 2}
    assert (
        f"2 images lie beside the class folders of {tmp_path} and are not read: 1.png, 2.png" in source.notes
    )


@pytest.mark.parametrize("form", ["pipe", "socket", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path, form, monkeypatch):
    root = make(tmp_path, *classes(""))
    path = root / "cat" / "00.png"
    if form == "pipe":
        os.mkfifo(path)
    elif form == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(path.parent)  # a socket's path has about a hundred bytes
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    refused(root, DatasetError, f"{path} is a (named )?{form}, not a regular file; remove it")


def test_links_that_lead_back_end_at_once(tmp_path):
    root = make(tmp_path, *classes(""))
    for name in "xyz":  # 3**32 paths, if it were not noticed
        (root / "cat" / name).symlink_to("../cat")
    refused(root, DatasetError, "cat/. links to a folder above it; remove the link")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = make(tmp_path, *classes(""))
    scan = os.scandir

    def scandir(folder):
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(image_tree.os, "scandir", scandir)
    refused(root, DatasetError, r"folder .*/dog cannot be read \(Permission denied\)")


def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch):
    """A folder that may not be entered, a name that is too long, a disk that fails: of whatever kind the source is."""
    refused("x" * 5000, RequestError, "does not exist or is not a folder")
    with pytest.raises(UnknownNameError, match="unknown dataset"):
        resolve_source("x" * 5000)
    table = tmp_path / "t.csv"
    table.write_text("path,label\n")

    def failing(*_):
        raise OSError(5, "Input/output error", str(table))

    monkeypatch.setattr("featcache.extraction.sources.csv_table.read_table", failing)
    with pytest.raises(DatasetError, match=rf"^{table} cannot be read \(Input/output error\)$"):
        resolve_source(f"csv:{table}")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems normalize names")
def test_class_folders_match_in_either_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    plain = open_it(make(tmp_path / "a", *classes("train", "test", names=(composed, "x"))))
    mixed = open_it(
        make(
            tmp_path / "b",
            *classes("train", names=(composed, "x")),
            *classes("test", names=(decomposed, "x")),
        )
    )
    assert mixed.class_names == plain.class_names == (composed, "x")
    assert mixed.splits["test"].labels.tolist() == plain.splits["test"].labels.tolist()
    refused(
        make(tmp_path / "c", *classes("", names=(composed, decomposed))),
        DatasetError,
        "differ in the Unicode form",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_class_folder_that_is_not_utf8_is_named(tmp_path):
    root = make(tmp_path, *classes(""))
    os.mkdir(os.fsencode(root) + b"/\xff")
    refused(root, DatasetError, "the folder name '.udcff' is not valid UTF-8; rename the folder")


def test_the_numbered_test_split_of_a_competition_is_no_class(tmp_path):
    source = open_it(make(tmp_path / "a", *classes("train", "test1")))
    assert split_ids(source)["test"] == sorted(classes("test1"))
    other = open_it(make(tmp_path / "b", *classes("train", "test", "test2")))
    assert split_ids(other)["test"] == sorted(classes("test"))
    same = open_it(make(tmp_path / "c", *classes("", names=("test1", "test2"), count=4)))
    assert same.class_names == ("test1", "test2")


def test_images_of_a_split_without_labels(tmp_path):
    flat = [f"test/{number}.png" for number in range(3)]
    make(tmp_path, *classes("train"), *flat)
    refused(tmp_path, DatasetError, rf"its 3 images have no label: .* name imagefolder:{tmp_path}/train$")
    assert open_it(tmp_path / "train").class_names == ("cat", "dog")
    make(tmp_path, *classes("val"))
    refused(tmp_path, DatasetError, "test on another split with --test-split val")
    assert split_ids(open_it(tmp_path, test_splits=("val",)))["test"] == sorted(classes("val"))


def test_a_table_that_has_the_labels_of_a_flat_folder_is_named(tmp_path):
    paths = [f"train/{number}.png" for number in range(8)]
    make(tmp_path, *paths, "test/9.png")
    rows = "".join(f"{number}.png,{number % 2}\n" for number in range(8))
    (tmp_path / "train.csv").write_text(f"image,label\n{rows}")
    table = f"csv:{tmp_path}/train.csv?root={tmp_path}/train"
    refused(tmp_path, DatasetError, f"if train.csv has them, name {re.escape(table)}; .* --target none")
    assert len(resolve_source(table, DatasetOptions()).splits["train"]) == 6


def test_folders_in_the_only_class_of_splits_may_be_the_classes(tmp_path):
    source = open_it(make(tmp_path, *classes("train/images", "test/images")))
    assert source.class_names == ("images",)
    (note,) = (note for note in source.notes if "the one class" in note)
    assert note.endswith("(cat, dog, ...); if these are the classes, they must lie in train/ itself")
    alone = make(tmp_path / "b", *classes("images", count=4))
    assert any(note.endswith("name imagefolder:.../images") for note in open_it(alone).notes)
