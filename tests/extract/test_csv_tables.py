"""Tables as people have them: every spelling of splits and of missing values, pandas's index, Windows, Excel, hostile rows."""

import os
import re
import sys
import unicodedata

import pytest
from PIL import Image

from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.store.errors import DatasetError, FeatcacheError, RequestError, UnknownNameError

N = 16


@pytest.fixture
def root(tmp_path):
    for number in range(N):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


def write(root, header, row, *, name="t.csv", encoding="utf-8", count=N, separator=","):
    lines = [header, *(separator.join(str(value) for value in row(number)) for number in range(count))]
    (root / name).write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return root / name


def open_it(table, fields="", **options):
    return resolve_source(f"csv:{table}{fields}", DatasetOptions(**options))


def refused(table, kind: type[FeatcacheError], message, fields="", **options):
    with pytest.raises(kind) as caught:
        open_it(table, fields, **options)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def numbers_in_test(source):
    return sorted(int(sample.id.removesuffix(".png")) for sample in source.splits["test"])


LAST = [12, 13, 14, 15]


# Splits.


@pytest.mark.parametrize(
    ("column", "train", "test"),
    [
        ("split", "train", "test"),
        ("split", "Train", "Test"),
        ("split", "TRAIN", "TEST"),
        ("Split", "training", "testing"),
        ("set", "train", "test"),
        ("Subset", "Training", "Test"),
        ("fold", "train", "test"),
        ("is_test", "0", "1"),
        ("is_test", "False", "True"),
        ("is_train", "1", "0"),
        ("purpose", "train", "test"),
        ("train", "1", "0"),
    ],
)
def test_a_table_s_own_split_is_taken(root, column, train, test):
    usual = open_it(
        write(root, "path,label,split", lambda i: (f"{i}.png", "xy"[i % 2], "train" if i < 12 else "test"))
    )
    source = open_it(
        write(root, f"path,label,{column}", lambda i: (f"{i}.png", "xy"[i % 2], train if i < 12 else test))
    )
    assert (source.class_names, numbers_in_test(source)) == (("x", "y"), LAST)
    assert source.identity == usual.identity, "the same split has the same key in every spelling"
    renamed = f"splits of t.csv: {train} is train, {test} is test"
    assert (renamed in source.notes) == (train not in ("train", "0", "1", "False"))
    assert column == "split" or any(
        f"column {column} of t.csv is taken for its split" in n for n in source.notes
    )


def test_splits_that_say_nothing_are_refused_and_can_be_named(root):
    table = write(root, "path,label,split", lambda i: (f"{i}.png", "xy"[i % 2], int(i >= 12)))
    refused(
        table,
        DatasetError,
        "t.csv has no split train and no split test; it has 0, 1: name them with --train-split",
    )
    source = open_it(table, train_split="0", test_splits=("1",))
    assert numbers_in_test(source) == LAST
    assert (source.identity["train_split"], source.identity["test_splits"]) == ("0", ["1"])
    assert len(open_it(table, "?split=&label=label").splits["test"]) == 4
    table = write(
        root, "path,label,split", lambda i: (f"{i}.png", "xy"[i % 2], "training" if i < 12 else "validation")
    )
    refused(table, DatasetError, "no split test; it has training, validation: name one with --test-split")
    assert numbers_in_test(open_it(table, test_splits=("val",))) == LAST
    table = write(
        root, "path,label,split", lambda i: (f"{i}.png", "xy"[i % 2], ["train", "Train", "test"][i % 3])
    )
    refused(table, DatasetError, "more than one split for train: train, Train")
    table = write(root, "path,label,split", lambda i: (f"{i}.png", "xy"[i % 2], "" if i == 3 else "train"))
    refused(table, DatasetError, "row 5 has '' in column 'split'; every row needs a split")


def test_a_split_that_was_half_known_has_a_new_identity(root):
    """``Train`` was passed over beside ``test``; the digest must not be that of a cache without train."""
    rows = [("Train" if i < 12 else "test") for i in range(N)]
    spelled = open_it(write(root, "path,label,split", lambda i: (f"{i}.png", "xy"[i % 2], rows[i])))
    usual = open_it(write(root, "path,label,split", lambda i: (f"{i}.png", "xy"[i % 2], rows[i].lower())))
    assert spelled.identity == usual.identity
    assert list(spelled.splits) == ["train", "test"]


def test_what_may_be_a_split_or_a_label_is_asked(root):
    table = write(root, "path,label,fold", lambda i: (f"{i}.png", i % 2, i % 2))
    refused(table, RequestError, r"column fold may be the split or a label; .*\?label=label")
    assert open_it(table, "?label=label").class_names == ("0", "1")
    table = write(root, "path,label,train", lambda i: (f"{i}.png", i % 2, int(i < 12)))
    refused(table, RequestError, "column train may be a flag of the split or a class")
    assert numbers_in_test(open_it(table, "?split=train")) == LAST
    assert numbers_in_test(open_it(table, "?label=label")) == LAST
    table = write(root, "path,label,set,usage", lambda i: (f"{i}.png", "xy"[i % 2], "train", "test"))
    refused(table, RequestError, "columns set, usage may all be the split")


def test_a_class_called_train(root):
    table = write(root, "path,label", lambda i: (f"{i}.png", ["train", "test", "bus"][i % 3]))
    assert open_it(table).class_names == ("bus", "test", "train")
    table = write(root, "path,label", lambda i: (f"{i}.png", ["train", "test"][i % 2]))
    assert open_it(table).class_names == ("test", "train")
    table = write(root, "path,bus,car,train", lambda i: (f"{i}.png", i % 2, int(i % 3 == 0), int(i < 12)))
    source = open_it(table)
    assert source.class_names == ("bus", "car", "train")
    assert "column train of t.csv is taken for a class, not for the split" in source.notes


# Labels.


def test_missing_labels_are_no_class(root):
    table = write(root, "path,label", lambda i: (f"{i}.png", ["0", "1", "nan", "NA"][i % 4]))
    refused(
        table,
        DatasetError,
        r"labels are missing in 8 rows \(row 4 has 'nan', row 5 has 'NA', .*\?missing=drop",
    )
    source = open_it(table, "?missing=drop")
    assert (source.class_names, len(source._collection.listing.ids)) == (("0", "1"), 8)
    assert source._collection.listing.passed_over == {"rows without a label": 8}
    assert "8 rows of t.csv have no label and are left out" in source.notes
    assert open_it(table, "?missing=class").class_names == ("0", "1", "NA", "nan")
    refused(table, RequestError, "missing of csv must be drop or class, got 'x'", "?missing=x")
    table = write(root, "path,label", lambda i: (f"{i}.png", ["a", ""][i % 2]))
    refused(table, DatasetError, "labels are missing in 8 rows", "?missing=class")
    table = write(root, "path,label", lambda i: (f"{i}.png", "NaN"))
    refused(table, DatasetError, "no row has a label in column label", "?missing=drop")
    table = write(root, "path,weight", lambda i: (f"{i}.png", "NA" if i == 2 else i / 4))
    refused(table, DatasetError, "labels are missing in 1 rows", target="regression")
    assert len(open_it(table, "?missing=drop", target="regression")._collection.listing.ids) == 15


def test_one_class_in_two_spellings_is_one(root):
    table = write(root, "path,label", lambda i: (f"{i}.png", ["0", "1", "1.0", "0.0"][i % 4]))
    source = open_it(table)
    assert source.class_names == ("0", "1")
    assert source._collection.listing.labels.tolist() == [0, 1, 1, 0] * 4
    assert "t.csv: classes: 1, 1.0 are read as one, 1" in source.notes
    accents = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    source = open_it(write(root, "path,label", lambda i: (f"{i}.png", [*accents, "b"][i % 3])))
    assert source.class_names == ("b", accents[0])
    source = open_it(write(root, "path,label", lambda i: (f"{i}.png", ["Cat", "cat", "01", "1"][i % 4])))
    assert len(source.class_names) == 4
    assert "t.csv: classes differ in capitalization alone: Cat/cat" in source.notes
    assert "t.csv: classes are equal as numbers: 01/1" in source.notes


def test_classes_of_one_spelling_keep_it(root):
    assert open_it(write(root, "path,label", lambda i: (f"{i}.png", ["1.0", "2.0"][i % 2]))).class_names == (
        "1.0",
        "2.0",
    )


def test_real_values_that_are_read_as_classes_are_said(root):
    source = open_it(write(root, "path,label", lambda i: (f"{i}.png", i % 4 / 4)))
    assert any("labels are numbers such as 0.25 and are read as classes" in note for note in source.notes)


def test_one_group_in_two_spellings_stays_together(root):
    rows = ["1", "1.0", "2", "NA"]
    table = write(root, "path,label,patient", lambda i: (f"{i}.png", "xy"[i // 4 % 2], rows[i % 4]))
    source = open_it(table, group_by="patient")
    groups = [{int(sample.id.removesuffix(".png")) % 4 for sample in part} for part in source.splits.values()]
    assert not ({0, 1} & groups[0] and {0, 1} & groups[1])
    assert source.identity["groups"] == "unified"
    assert "4 rows of t.csv have no group and are kept together as one" in source.notes
    plain = write(root, "path,label,patient", lambda i: (f"{i}.png", "xy"[i // 4 % 2], str(i % 4)))
    assert "groups" not in open_it(plain, group_by="patient").identity


def test_ids_are_there(root):
    table = write(root, "path,label,id", lambda i: (f"{i}.png", "xy"[i % 2], i or ""))
    refused(table, DatasetError, "row 2 has no id")


def test_a_test_table_beside_is_said(root):
    write(root, "path,label", lambda i: (f"{i}.png", "xy"[i % 2]), name="test.csv")
    source = open_it(
        write(root, "file,path,label", lambda i: (f"{i}.png", "x", "xy"[i % 2]), name="train.csv"),
        "?label=label",
    )
    assert "only train.csv is read; beside it lies test.csv" in source.notes
    assert "column file of train.csv is taken for the path, not path" in source.notes


# How tables are written.


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_index_of_pandas_is_no_label(root, name):
    plain = open_it(write(root, "path,label", lambda i: (f"{i}.png", "xy"[i % 2])))
    source = open_it(write(root, f"{name},path,label", lambda i: (i, f"{i}.png", "xy"[i % 2])))
    assert source.identity == plain.identity
    assert "t.csv: the column without a name (the index that pandas writes) is not read" in source.notes
    table = write(root, f"{name},path,weight", lambda i: (i, f"{i}.png", i * 1.5))
    assert open_it(table, target="regression").targets.names == ("weight",)
    table = write(root, "path,label,", lambda i: (f"{i}.png", "xy"[i % 2], "text"))
    refused(table, DatasetError, "column 3 has values and no name")
    assert (
        open_it(write(root, "path,label,", lambda i: (f"{i}.png", "xy"[i % 2], ""))).identity
        == plain.identity
    )


@pytest.mark.parametrize(
    ("encoding", "separator", "first"),
    [
        ("utf-8-sig", ",", ""),
        ("utf-16", "\t", ""),
        ("utf-8", ";", ""),
        ("utf-8", "|", ""),
        ("utf-8", ";", "sep=;\n"),
    ],
)
def test_forms_of_tables(root, encoding, separator, first):
    plain = open_it(write(root, "path,label", lambda i: (f"{i}.png", "xy"[i % 2])))
    header = f"{first}path{separator}label"
    source = open_it(
        write(root, header, lambda i: (f"{i}.png", "xy"[i % 2]), encoding=encoding, separator=separator)
    )
    assert source.identity == plain.identity


def test_line_ends_inside_of_values(root):
    lines = [f'{i}.png,"{"two" if i % 2 else "a"}\u2028b"' for i in range(N)]
    (root / "t.csv").write_text("path,label\n" + "\n".join(lines))
    assert open_it(root / "t.csv").class_names == ("a\u2028b", "two\u2028b")
    header = 'path,label,"a note, with; many; separators;\nin two lines"\r\n'
    (root / "t.csv").write_bytes(
        (header + "".join(f'{i}.png,{i % 2},"x\r\ny"\r\n' for i in range(N))).encode()
    )
    assert open_it(root / "t.csv", "?label=label").class_names == ("0", "1")
    (root / "t.csv").write_bytes(b"path,label\r" + b"".join(b"%d.png,%d\r" % (i, i % 2) for i in range(N)))
    assert open_it(root / "t.csv").class_names == ("0", "1")


def test_other_encodings_are_named(root):
    table = write(root, "path,label", lambda i: (f"{i}.png", "caf\xe9" if i % 2 else "b"), encoding="latin-1")
    refused(
        table,
        DatasetError,
        r"is not UTF-8 \(byte \d+\); save it as UTF-8, or name its encoding as in csv:FILE\?encoding",
    )
    assert open_it(table, "?encoding=latin-1").class_names == ("b", "caf\xe9")
    refused(table, RequestError, "encoding 'latin-99' of .* is unknown", "?encoding=latin-99")
    refused(write(root, "0.png,a", lambda i: (f"{i}.png", "a")), RequestError, "first line must be a header")


# Paths.


def test_paths_of_windows(root):
    plain = open_it(write(root, "path,label", lambda i: (f"./{i}.png", "xy"[i % 2])))
    source = open_it(write(root, "path,label", lambda i: (f".\\{i}.png", "xy"[i % 2])))
    assert source.identity == plain.identity
    assert "16 paths of t.csv are written with Windows's \\ and are read with /" in source.notes
    assert source._collection.image(3).getpixel((0, 0)) == (3, 0, 0)
    table = write(root, "path,label", lambda i: (f"C:\\data\\{i}.png", "a"))
    refused(table, DatasetError, r"16 images with the separators or drives of Windows \(below .*\?root=DIR")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems normalize names")
def test_paths_in_the_other_unicode_form(root):
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    (root / "0.png").rename(root / decomposed)
    table = write(root, "path,label", lambda i: (f"{i}.png" if i else composed, "xy"[i % 2]))
    source = open_it(table)
    assert source._collection.listing.ids[0] == composed
    assert source._collection.image(0).getpixel((0, 0)) == (0, 0, 0)
    mixed = "e\u0301\u00e9.png"
    for form in ("NFC", "NFD"):
        os.link(root / "1.png", root / unicodedata.normalize(form, mixed))
    table = write(root, "path,label", lambda i: (mixed, "x"), count=1)
    refused(table, DatasetError, "more than one file has this name in another Unicode form")


def test_absolute_paths_do_not_reach_the_ids(root, tmp_path):
    relative = open_it(write(root, "path,label", lambda i: (f"{i}.png", "xy"[i % 2])))
    table = write(root, "path,label", lambda i: (f"{root}/{i}.png", "xy"[i % 2]))
    assert open_it(table).identity == relative.identity
    assert any("16 paths are absolute" in note for note in open_it(table).notes)
    assert open_it(table, f"?root={root.parent}")._collection.listing.ids[0] == f"{root.name}/0.png"
    other = tmp_path / "elsewhere"
    other.mkdir()
    table.rename(other / "t.csv")
    assert list(open_it(other / "t.csv")._collection.listing.ids) == [f"{i}.png" for i in range(N)]


# Hostile and damaged ones.


def test_paths_that_are_no_images(root):
    os.mkfifo(root / "pipe.png")
    for path, message in (
        ("pipe.png", "row 2: pipe.png is a named pipe, not a regular file"),
        ("/dev/zero", "row 2: /dev/zero is a device"),
        (".", "row 2: . is a folder"),
        ("x" * 100_000, r"1 images \(below .*\) do not exist: x{120}... \(100000 characters\)"),
        ("a\x1b[2Jb.png", r"do not exist: a.x1b\[2Jb.png"),
    ):
        rows = [path, *(f"{i}.png" for i in range(1, N))]
        refused(write(root, "path,label", lambda i, rows=rows: (rows[i], "xy"[i % 2])), DatasetError, message)
    refused(
        write(root, "path,label", lambda i: (f"{i}\0.png", "a")), DatasetError, "line 2 has a NUL character"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,label\n\xed\xa0\x80.png,a\n", "is not UTF-8"),
        (b'path,label\n"0.png,a\n1.png,b\n', "cannot be read as CSV"),
        (b'path,label\n0.png,"' + b"y" * 200_000 + b'"\n', "cannot be read as CSV"),
        (b",\n1,2\n", "column 2 has values and no name|no column path"),
        (b"\xff\xfep", "is not UTF-16"),
        (b"", "is empty"),
    ],
)
def test_damaged_tables(root, content, message):
    (root / "t.csv").write_bytes(content)
    refused(root / "t.csv", FeatcacheError, message)


def test_fields_that_are_not_there(root):
    table = write(root, "path,label", lambda i: (f"{i}.png", "a"))
    refused(table, UnknownNameError, "unknown split column 'x'", "?split=x")
    refused(table, RequestError, "t has no splits of its own; leave --train-split", test_splits=("test",))


def test_where_missing_images_lie_is_said(root, tmp_path):
    (root / "train").mkdir()
    for path in root.glob("*.png"):
        path.rename(root / "train" / path.name)
    names = sorted(path.name for path in (root / "train").iterdir())
    table = root / "t.csv"
    table.write_text("image,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    refused(table, DatasetError, f"{names[0]} is in {root}/train, which .root={root}/train names")
    assert len(open_it(table, f"?root={root}/train").splits["train"])
    table.write_text("image,label\n" + "".join(f"{n[:-4]},{i % 2}\n" for i, n in enumerate(names)))
    refused(table, DatasetError, f"{names[0]} is in {root}/train: paths need their extension")


def test_real_values_of_which_each_is_there_once_are_no_classes(root):
    table = write(root, "path,age", lambda i: (f"{i}.png", i + 0.5))
    refused(
        table, DatasetError, "class '0.5' has a single image, .* for real values give --target regression"
    )
    assert open_it(table, target="regression").targets.names == ("age",)
