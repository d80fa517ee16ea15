"""Names of splits: recognized in every spelling, refused where they do not tell which split is which."""

import numpy as np
import pytest

from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.split_names import (
    choose_splits,
    find_split,
    is_split_column,
    name_the_only_split,
    note_splits_beside,
    role_of,
    roles_of,
    split_text,
    splits_beside,
    splits_of_column,
)
from featcache.store.errors import DatasetError, FeatcacheError, RequestError, UnknownNameError


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("train", ["train", "Train", "TRAIN", " training ", "Training", "tr", "train_data", "train2017", "training set", "images_train", "TrainImages"]),
        ("test", ["test", "Test", "TESTING", "tst", "te", "test-images", "test_set"]),
        ("val", ["val", "Valid", "validation", "VALIDATION", "dev", "eval", "val2017"]),
        (None, ["", "set", "trains", "contest", "0", "1", "PublicTest", "sketch", "extra", "trainval", "train_station", "steam train", "train test"]),
    ],
)  # fmt: skip
def test_roles(role, names):
    assert {name: role_of(name) for name in names} == dict.fromkeys(names, role)


def choose(*found, **options):
    chosen = choose_splits(found, DatasetOptions(**options), "here")
    return chosen.names, chosen.unread


def test_usual_names_are_chosen_in_the_order_train_test():
    assert choose() == ({}, ())
    assert choose("train", "test") == ({"train": "train", "test": "test"}, ())
    assert choose("TEST", "extra", "Training") == ({"train": "Training", "test": "TEST"}, ("extra",))
    assert choose("train", "test", "val") == ({"train": "train", "test": "test"}, ("val",))
    assert choose("val", "test") == ({"test": "test"}, ("val",))
    assert choose("Train") == ({"train": "Train"}, ())


def test_named_splits_are_found_in_another_spelling():
    assert choose("Training", "Validation", test_splits=("val",)) == (
        {"train": "Training", "Validation": "Validation"},
        (),
    )
    assert choose("0", "1", train_split="0", test_splits=("1",)) == ({"train": "0", "1": "1"}, ())
    assert choose("train", "training", "test", train_split="training")[0]["train"] == "training"
    assert find_split("test", ["a", "Testing"]) == "Testing"
    assert find_split("SKETCH", ["sketch", "sketches"]) == "sketch"


def test_splits_put_together_lose_none_unless_train_and_test_are_there():
    assert choose("a", "b", resplit=True) == ({"a": "a", "b": "b"}, ())
    assert choose("train", "val", resplit=True) == ({"train": "train", "val": "val"}, ())
    assert choose("train", "test", "val", resplit=True) == ({"train": "train", "test": "test"}, ("val",))


@pytest.mark.parametrize(
    ("found", "options", "kind", "message"),
    [
        (("train", "val"), {}, DatasetError,
         "here has no split test; it has train, val: name one with --test-split, or split it anew with --resplit"),
        (("0", "1"), {}, DatasetError,
         "here has no split train and no split test; it has 0, 1: name them with --train-split and --test-split, or split "
         "it anew with --resplit"),
        (("Train", "training", "test"), {}, DatasetError,
         "here has more than one split for train: Train, training; name one with --train-split"),
        (("train", "TEST", "test"), {}, DatasetError,
         "here has more than one split for test: TEST, test; name one with --test-split"),
        (("train", "test"), {"test_splits": ("vall",)}, UnknownNameError, "unknown split 'vall'"),
        (("Train", "test"), {"test_splits": ("Train",)}, RequestError, "cannot be tested on"),
        (("a", "b"), {"train_split": "a", "test_splits": ("A",)}, RequestError, "cannot be tested on"),
        (("train", "test"), {"test_splits": ("train",)}, RequestError, "cannot be tested on"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_is_refused_with_a_list(found, options, kind: type[FeatcacheError], message):
    with pytest.raises(kind) as caught:
        choose(*found, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_of_splits_and_of_flags():
    assert all(map(is_split_column, ["split", "Split", "fold", "SUBSET", "is_test", "isTrain", "is_valid"]))
    assert not any(map(is_split_column, ["label", "train", "isolation", "test", "weight"]))
    assert splits_of_column("is_test", ["0", "1", "False", "TRUE"]) == ["train", "test", "train", "test"]
    assert splits_of_column("is_train", [1, 0, np.True_, 0.0]) == ["train", "test", "train", "test"]
    assert splits_of_column("is_valid", ["no", "yes"]) == ["train", "val"]
    assert splits_of_column("is_test", ["0", "1", "2"]) == ["0", "1", "2"]
    assert splits_of_column("split", ["0", "1"]) == ["0", "1"]
    assert name_the_only_split(["Train", "Test", "Train"])
    assert not any(map(name_the_only_split, [["train"], ["train", "bus"], ["val", "test"], []]))
    assert [split_text(value) for value in (b"train", np.str_("test "), np.bytes_(b"x"), np.int64(1))] == [
        "train",
        "test",
        "x",
        "1",
    ]


def test_a_word_for_a_split_counts_beside_others_where_both_stand_alike():
    assert roles_of(["seg_train", "seg_test", "seg_pred"]) == {
        "seg_train": "train",
        "seg_test": "test",
        "seg_pred": None,
    }
    assert set(roles_of(["train_station", "bus_station", "test_tube"]).values()) == {None}
    assert choose("seg_train", "seg_test", "seg_pred") == (
        {"train": "seg_train", "test": "seg_test"},
        ("seg_pred",),
    )


def test_splits_beside_one_that_is_read_alone_are_said(tmp_path):
    for name in (
        "train",
        "test",
        "docs",
        "a-train-00.tar",
        "a-train-01.tar",
        "a-test-00.tar",
        "b-val-00.tar",
        "val.csv",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "train.csv").write_text("")
    assert splits_beside(tmp_path / "train") == ["test"]
    assert splits_beside(tmp_path / "a-train-00.tar") == ["a-test-00.tar"]
    assert note_splits_beside(tmp_path / "train.csv") == ["only train.csv is read; beside it lies val.csv"]
    assert splits_beside(tmp_path / "docs") == splits_beside(tmp_path / "nowhere" / "train") == []
