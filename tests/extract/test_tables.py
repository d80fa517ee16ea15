"""Tables, arrays and Python objects as datasets: targets of every kind, splits, groups, and every way they can be wrong."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.sequences import python_dataset
from featcache.extraction.sources.splits import strata_of
from featcache.store.errors import DatasetError, FeatcacheError, RequestError, UnknownNameError
from featcache.store.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.datasets import (
    CLASSES,
    SIZES,
    Items,
    encoded,
    idx_bytes,
    labels,
    make_csv,
    make_folder,
    make_idx,
    make_parquet,
    make_pcam,
    pixels,
)


@pytest.fixture(autouse=True)
def data_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))


def open_it(name: str, **options):
    return resolve_source(name, DatasetOptions(**options))


def refused(name: str, kind: type[FeatcacheError], message: str, **options) -> None:
    with pytest.raises(kind) as caught:
        open_it(name, **options)
    assert message in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


# Tables.


def test_several_label_columns_are_several_classes(tmp_path):
    columns = {
        "striped": lambda split, row: row % 2,
        "winged": lambda split, row: int(row % 3 == 0),
        "patient": lambda split, row: f"{split}-{row}",
    }
    table = make_csv(tmp_path / "table.csv", columns)
    source = open_it(f"csv:{table}", group_by="patient")
    assert (source.targets.type, source.class_names) == (MULTI_LABEL, ("striped", "winged"))
    assert source.splits["train"].labels.tolist() == [[row % 2, int(row % 3 == 0)] for row in range(10)]
    one = open_it(f"csv:{table}?label=striped")
    assert (one.targets.type, one.class_names) == (SINGLE_LABEL, ("0", "1"))
    assert one.identity["digest"] != source.identity["digest"]


def test_real_values_have_units(tmp_path):
    columns = {"weight [kg]": lambda split, row: row / 4, "length (mm)": lambda split, row: -row}
    table = make_csv(tmp_path / "table.csv", columns)
    source = open_it(f"csv:{table}", target=REGRESSION)
    targets = source.targets
    assert (targets.type, targets.names, targets.units) == (REGRESSION, ("weight", "length"), ("kg", "mm"))
    labels = source.splits["test"].labels
    assert (labels.dtype, labels[3].tolist()) == (np.float32, [0.75, -3])
    other = open_it(f"csv:{table}?label=length+(mm)&units=cm".replace("+", " "), target=REGRESSION)
    assert other.targets.units == ("cm",)
    anew = open_it(f"csv:{table}", target=REGRESSION, resplit=True)
    assert [len(part) for part in anew.splits.values()] == [12, 3]


def test_test_beyond_the_range_of_train_is_said(tmp_path):
    table = make_csv(tmp_path / "table.csv", {"size": lambda split, row: row + (7 if split == "test" else 0)})
    source = open_it(f"csv:{table}", target=REGRESSION)
    assert list(source.notes) == ["split test of table: 2 of 5 targets lie outside of the range of train"]


def test_splits_of_many_names(tmp_path):
    table = make_csv(tmp_path / "table.csv")
    text = table.read_text().replace(",test,", ",sketch,", 2).replace(",test,", ",val,", 2)
    table.write_text(text)
    source = open_it(f"csv:{table}")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 10, "test": 1}
    assert "not read: split sketch, val (--test-split)" in source.notes
    several = open_it(f"csv:{table}", test_splits=("test", "sketch", "val"))
    assert {split: len(part) for split, part in several.splits.items()} == {
        "train": 10,
        "test": 1,
        "sketch": 2,
        "val": 2,
    }
    renamed = open_it(f"csv:{table}", test_splits=("val", "sketch"))
    assert {split: len(part) for split, part in renamed.splits.items()} == {
        "train": 10,
        "test": 2,
        "sketch": 2,
    }
    assert "split val of table goes by the name test in the cache" in renamed.notes
    assert len({str(one.identity) for one in (source, several, renamed)}) == 3
    refused(f"csv:{table}", UnknownNameError, "unknown split 'vall'; did you mean val", test_splits=("vall",))
    refused(f"csv:{table}", RequestError, "what is trained on cannot be tested on", test_splits=("train",))
    table.write_text(text.replace(",test,", ",val,"))
    refused(
        f"csv:{table}",
        DatasetError,
        "table.csv has no split test; it has train, sketch, val: name one with --test-split, or split it anew with --resplit",
    )


def test_groups_of_a_table_s_own_splits_must_not_be_shared(tmp_path):
    table = make_csv(
        tmp_path / "table.csv",
        {"label": lambda split, row: row % 2, "patient": lambda split, row: f"p{row // 2}"},
    )
    refused(
        f"csv:{table}",
        DatasetError,
        "table: 3 groups of patient are in both train and test: p0, p1, p2; --resplit splits anew by patient",
        group_by="patient",
    )
    source = open_it(f"csv:{table}", group_by="patient", resplit=True)
    patients = [line.split(",")[3] for line in table.read_text().splitlines()[1:]]
    paths = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    of = dict(zip(paths, patients, strict=True))
    train, test = ({of[sample.id] for sample in part} for part in source.splits.values())
    assert test
    assert not train & test
    assert (source.identity["group_by"], source.identity["resplit"]) == ("patient", True)


def test_tables_that_cannot_be_used(tmp_path):
    table = make_csv(tmp_path / "table.csv")
    name, whole = f"csv:{table}", table.read_text()

    def change(text: str, message: str, kind: type[FeatcacheError] = DatasetError, **options) -> None:
        table.write_text(text)
        refused(name, kind, message, **options)

    change("", f"{table} is empty; it needs a header such as path,label")
    change("path,label\n", "has no rows below its header")
    change("path,label\na.png\n", "row 2 has 1 fields, the header 2")
    change("path,path\na,b\n", "columns have the same name: path, path")
    change("where,label\na,b\n", "has no column path, file, filename", RequestError)
    change(whole.replace(",ant", ",", 1), "labels are missing in 1 rows (row 2 has '')")
    change(whole, "in column 'label', which is no number", target=REGRESSION)
    change(whole.replace("images/", "pictures/"), "15 images (below", DatasetError)
    twelve = whole + "".join(f"gone-{number}.png,train,ant\n" for number in range(12))
    gone = ", ".join(f"gone-{number}.png" for number in range(10))
    change(twelve, f"{table}: 12 images (below {tmp_path}) do not exist: {gone} and 2 more")
    change(whole + whole.splitlines()[1] + "\n", "path: 1 ids appear more than once: images/train/ant/00.png")
    change(
        "path,age,sex\n" + "images/train/ant/00.png,63,1\n" * 1,
        "row 2 has '63' in column 'age', must be 0 or 1 for several classes",
    )
    change(
        "path,age,sex\nimages/train/ant/00.png,63,1\n",
        "name one as in csv:FILE?label=NAME",
        RequestError,
        target=SINGLE_LABEL,
    )
    table.write_bytes(b"path,label\n\xff,a\n")
    refused(name, DatasetError, "is not UTF-8 (byte 11); save it as UTF-8")
    refused(f"csv:{table}x", RequestError, "does not exist or is not a file")
    table.write_text(whole)
    refused(f"{name}?labels=x", UnknownNameError, "unknown field of csv 'labels'; did you mean label")
    refused(f"{name}?label=labl", UnknownNameError, "unknown label column 'labl'; did you mean label")
    refused(name, UnknownNameError, "unknown group-by column 'patient'", group_by="patient")
    refused(name, UnknownNameError, "unknown kind of target 'classes'", target="classes")


def test_what_no_cache_could_hold_is_refused_before_the_run(tmp_path):
    table = make_csv(tmp_path / "table.csv")
    whole = table.read_text()
    table.write_text(whole.replace(",test,", ",a b,", 2))
    refused(
        f"csv:{table}",
        DatasetError,
        "split 'a b' cannot have this name in a cache",
        test_splits=("test", "a b"),
    )
    table.write_text(whole.replace(",ant", ",an\x01t"))
    refused(f"csv:{table}", DatasetError, r"the name 'an\x01t' of a class or target has control characters")


def test_numbers_as_classes_are_in_their_order(tmp_path):
    values = ["10", "9", "nan", "-1", "b", "9"]
    table = make_csv(tmp_path / "table.csv", {"label": lambda split, row: values[row % 6]})
    assert open_it(f"csv:{table}?missing=class").class_names == ("-1", "9", "10", "b", "nan")


def test_semicolons_and_quotes(tmp_path):
    make_folder(tmp_path / "images")
    (tmp_path / "t.csv").write_text(
        'path;label\n"images/train/ant/00.png";"a;b"\nimages/train/ant/01.png;"a;b"\n'
    )
    assert open_it(f"csv:{tmp_path}/t.csv").class_names == ("a;b",)


# HDF5.


def test_hdf5_without_the_arrays_lists_what_is_there(tmp_path):
    path = tmp_path / "scans.h5"
    with h5py.File(path, "w") as file:
        file["scans/pixels"] = pixels("train")
        file["age"] = np.arange(10.0)
    refused(
        f"hdf5:{path}",
        RequestError,
        f"{path} has no array 'x'; it has age [10] float64, scans/pixels [10, 6, 6, 3] uint8: name them as in",
    )
    refused(
        f"hdf5:{path}?images=age", RequestError, "labels=y; or take the images without labels (--target none)"
    )
    source = open_it(f"hdf5:{path}?images=scans/pixels&labels=age&classes=age")
    assert (source.targets.type, source.class_names) == (REGRESSION, ("age",))
    refused(f"hdf5:{path}?images=age&labels=age", DatasetError, "images must be [N, H, W] or [N, H, W, C]")
    path.write_bytes(b"no file of HDF5")
    refused(f"hdf5:{path}", DatasetError, "cannot be read as HDF5")


def test_splits_as_groups_of_one_file(tmp_path):
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for split in ("train", "val"):
            file[f"{split}/x"], file[f"{split}/y"] = pixels("train"), labels("train")
            file[f"{split}/site"] = [b"abcd"[row % 4 : row % 4 + 1] for row in range(10)]
    name = f"hdf5:{tmp_path}/all.h5?images={{split}}/x&labels={{split}}/y"
    source = open_it(name, test_splits=("val",))
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 10, "test": 10}
    grouped = open_it(name, test_splits=("val",), group_by="{split}/site", resplit=True)
    site = [sample.id for sample in grouped.splits["test"]]
    assert len({int(one.rpartition("/")[2]) % 4 for one in site}) == 1


def test_a_packed_file_is_unpacked_once_and_damage_is_named(tmp_path):
    folder = make_pcam(tmp_path / "pcam", packed=True)
    name = f"hdf5:{folder}/camelyon_{{split}}_x.h5.gz"
    open_it(name)
    unpacked = sorted((tmp_path / "data" / ".unpacked").iterdir())
    times = [path.stat().st_mtime_ns for path in unpacked]
    open_it(name)
    assert [path.stat().st_mtime_ns for path in unpacked] == times
    path = folder / "camelyon_test_x.h5.gz"
    path.write_bytes(path.read_bytes()[:-20])
    refused(name, DatasetError, f"{path} is damaged (Compressed file ended before")
    assert not list((tmp_path / "data" / ".unpacked").glob("*.partial"))


def test_chunks_are_unpacked_once_for_a_batch(tmp_path, monkeypatch):
    path = tmp_path / "chunked.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=pixels("train"), chunks=(5, 6, 6, 3), compression="gzip")
        file["y"] = labels("train")
    source = open_it(f"hdf5:{path}", resplit=True)
    reads = []
    read = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, rows: reads.append(rows) or read(self, rows)
    )
    rows = range(len(source.splits["train"]))
    source.prepare("train", list(rows))
    for row in rows:
        source.image("train", row)
    assert len(reads) == 1


# IDX and NPZ.


def test_idx_files_that_cannot_be_used(tmp_path):
    folder = make_idx(tmp_path / "mnist", packed=True)
    images, train = folder / "t10k-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:-5])
    refused(f"idx:{folder}", DatasetError, f"{images} cannot be read (Compressed file ended")
    images.write_bytes(gzip.compress(b"\0\0\x08\x03rest"))
    refused(f"idx:{folder}", DatasetError, "its header says")
    images.write_bytes(gzip.compress(b"<html>"))
    refused(f"idx:{folder}", DatasetError, f"{images} is no IDX file (it begins with b'<htm')")
    images.write_bytes(whole)
    train.write_bytes(gzip.compress(idx_bytes(np.zeros(9, np.uint8))))
    refused(f"idx:{folder}", DatasetError, "has 10 images, but there are 9 labels")
    train.unlink()
    refused(f"idx:{folder}", DatasetError, "has no labels beside it (train-labels-idx1-ubyte or train-labels")
    refused(f"idx:{tmp_path}", DatasetError, "has no files such as train-images-idx3-ubyte")
    refused(f"idx:{tmp_path}/x", RequestError, "idx folder")


def test_npz_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, pictures=pixels("train"), y=labels("train"))
    refused(f"npz:{path}", RequestError, f"{path} has no array images; it has pictures, y: name them as in")
    assert len(open_it(f"npz:{path}?images=pictures").splits["train"]) == 7
    np.savez(path, x=pixels("train"), y=labels("train") / 2 + 0.3)
    refused(
        f"npz:{path}", DatasetError, "so they are not single-label (--target regression)", target=SINGLE_LABEL
    )
    assert open_it(f"npz:{path}").targets.type == REGRESSION
    np.savez(path, x=np.array([None] * 4), y=np.arange(4))
    refused(f"npz:{path}", DatasetError, "array x cannot be read (it holds Python objects")
    path.write_bytes(b"PK no archive")
    refused(f"npz:{path}", DatasetError, "cannot be read as NumPy's npz (it is no archive of arrays)")
    np.save(tmp_path / "b.npy", np.zeros(3))
    refused(f"npz:{tmp_path}/b.npy", DatasetError, "is a single array; save images and labels together")


# Parquet.


def test_parquet_without_notes_numbers_the_classes(tmp_path):
    folder = make_parquet(tmp_path / "insects", noted=False)
    source = open_it("hf:someone/insects", data=folder)
    assert source.class_names == ("0", "1", "2")
    refused(
        "hf:someone/insects?image=img",
        UnknownNameError,
        "unknown column 'img'; did you mean image",
        data=folder,
    )
    refused("hf:someone/insects", UnknownNameError, "unknown column 'age'", data=folder, group_by="age")
    refused("hf:a/b/c", RequestError, "is no repository of the Hub; write hf:OWNER/NAME")
    refused("hf:someone/insects", DatasetError, "there are no parquet files in it", data=tmp_path / "none")
    path = next(folder.rglob("train*.parquet"))
    path.write_bytes(b"PAR1")
    refused("hf:someone/insects", DatasetError, f"{path} cannot be read as parquet", data=folder)


def test_configurations_are_chosen(tmp_path):
    for config in ("small", "large"):
        make_parquet(tmp_path / "all" / config)
    refused(
        "hf:a/b",
        RequestError,
        "has configurations large, small; choose one with hf:REPO?config=NAME",
        data=tmp_path / "all",
    )
    source = open_it("hf:a/b?config=small", data=tmp_path / "all")
    assert source.identity["config"] == "small"
    refused(
        "hf:a/b?config=smal",
        UnknownNameError,
        "unknown configuration 'smal'; did you mean small",
        data=tmp_path / "all",
    )


def test_without_pyarrow_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    refused("hf:someone/insects", RequestError, "run: pip install 'pyarrow>=15'")


# Python objects.


def test_any_sequence_of_images_and_targets(tmp_path):
    paths = [str(tmp_path / f"{row}.png") for row in range(10)]
    for path, image in zip(paths, pixels("train"), strict=True):
        Path(path).write_bytes(encoded(image))
    for images in (paths, list(pixels("train")), [Image.fromarray(image) for image in pixels("train")]):
        items = list(zip(images, [CLASSES[label] for label in labels("train")], strict=True))
        source = python_dataset(items, name="mine", ids=[f"scan {row}" for row in range(10)])
        assert source.class_names == CLASSES
        assert sorted(s.id for part in source.splits.values() for s in part)[0] == "scan 0"
        sample = source.splits["test"][0]
        row = int(sample.id.split()[1])
        np.testing.assert_array_equal(source.image("test", 0).convert("RGB"), pixels("train")[row])
    vectors = python_dataset([(image, [0, 1]) for image in pixels("train")], name="several")
    assert vectors.targets.type == MULTI_LABEL
    real = python_dataset([(image, [0.5]) for image in pixels("train")], name="real", class_names=["age"])
    assert (real.targets.type, real.class_names) == (REGRESSION, ("age",))


def test_targets_known_up_front_are_not_read_again():
    class Slow(Items):
        targets = labels("train").tolist()

        def __getitem__(self, row):
            assert row in (0, 9) or self.targets, "read for its target"
            return super().__getitem__(row)

    source = python_dataset({"train": Slow("train"), "val": Items("test")}, name="mine")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 10, "test": 5}


@pytest.mark.parametrize(
    ("items", "more", "message"),
    [
        ([], {}, "mine holds no samples"),
        ([(None, 0)], {}, "image 0 is NoneType; it must be an image of Pillow's, an array or a path"),
        ([(pixels("train")[0], {})], {}, "targets must be integers, texts, or vectors of one length, got {}"),
        ([(pixels("train")[0], -1)], {}, "labels are not integers from 0"),
        ([(pixels("train")[0], 0)] * 2, {"ids": ["a", "a"]}, "mine: 1 ids appear more than once: a"),
        ([(pixels("train")[0], 0)] * 2, {"ids": ["a"]}, "split all has 2 items and 1 ids"),
        ([(pixels("train")[0], 0)] * 2, {"targets": [0]}, "split all has 2 items and 1 targets"),
    ],
)
def test_sequences_that_cannot_be_used(items, more, message):
    with pytest.raises(FeatcacheError) as caught:
        python_dataset(items, name="mine", **more)
    assert message in str(caught.value)


def test_torchvision(tmp_path):
    """FakeData makes its images; sets that torchvision reads with pickle are refused, wherever they lie."""
    source = open_it("torchvision:EuroSAT", data=make_eurosat(tmp_path))
    assert (source.class_names, source.identity["kind"]) == (CLASSES, "torchvision")
    assert sum(map(len, source.splits.values())) == 15
    source.image("train", 0)
    refused("torchvision:CIFAR10", RequestError, "with pickle, which featcache never does")
    refused(
        "torchvision:EuroSat",
        UnknownNameError,
        "unknown dataset of torchvision 'EuroSat'; did you mean EuroSAT",
    )


def make_eurosat(folder: Path) -> Path:
    for split in SIZES:
        for row, (image, label) in enumerate(zip(pixels(split), labels(split), strict=True)):
            path = folder / "eurosat" / "2750" / CLASSES[label] / f"{split}-{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
    return folder


# Strata.


def test_strata_of_several_classes_and_of_real_values():
    several = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], np.uint8)
    assert strata_of(several, MULTI_LABEL).tolist() == [1, 0, 0, 2]
    real = np.arange(20, dtype=np.float32)[::-1, None]
    assert strata_of(real, REGRESSION).tolist() == [4 - row // 4 for row in range(20)]


def test_options_that_mean_nothing_are_refused(tmp_path):
    folder = make_folder(tmp_path / "photos")
    for more in ({"data": tmp_path}, {"revision": "main"}):
        option = next(iter(more))
        for name in (f"imagefolder:{folder}", "digits"):
            refused(name, RequestError, f"--{option} means nothing for {name.partition(':')[0]}", **more)
    refused(f"imagefolder:{folder}", RequestError, "photos has no columns to group by", group_by="patient")
    refused("digits", RequestError, "digits has neither columns nor splits of its own", test_splits=("val",))


def test_an_unknown_kind_names_the_kinds():
    refused("folder:photos", UnknownNameError, "unknown dataset 'folder:'; did you mean imagefolder:?")
