"""Datasets without labels: of every form, by request or because nothing could be a label; where something could, they are refused."""

import json

import h5py
import numpy as np
import pytest

from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.sequences import python_dataset
from featcache.store.errors import DatasetError, RequestError
from featcache.store.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL, UNLABELED
from support.datasets import Items, encoded, make_idx, make_parquet, pixels, write_tar

from .test_source_contract import FORMS

NOTE = "has no labels: its images are taken without (as with --target none)"


@pytest.fixture(autouse=True)
def data_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def open_it(name, **options):
    return resolve_source(str(name), DatasetOptions(**options))


def image_bytes(row):
    return encoded(pixels("train")[row])


def write_images(folder, count=8):
    folder.mkdir(parents=True)
    for row in range(count):
        (folder / f"{row}.png").write_bytes(image_bytes(row % 7))
    return folder


@pytest.mark.parametrize("form", [form for form in FORMS if form != "python"])
def test_labels_are_not_read_on_request(form, tmp_path):
    FORMS[form].make(tmp_path)
    labeled = FORMS[form].open(tmp_path)
    options = DatasetOptions(target=UNLABELED, data=tmp_path if FORMS[form].data else None)
    source = resolve_source(FORMS[form].name.format(tmp_path), options)
    assert (source.targets.type, source.class_names) == (UNLABELED, ())
    assert source.identity["targets"] == UNLABELED
    assert source.identity != labeled.identity
    for split, samples in labeled.splits.items():
        assert [sample.id for sample in source.splits[split]] == [sample.id for sample in samples]
        assert np.array_equal(source.image(split, 1), labeled.image(split, 1))


def test_digits_and_python_sequences_without_labels():
    digits = open_it("digits", target=UNLABELED)
    assert (digits.targets.type, digits.identity["targets"]) == (UNLABELED, UNLABELED)
    assert sum(map(len, digits.splits.values())) == 1797
    images = [image for image, _ in (Items("train")[row] for row in range(len(Items("train"))))]
    source = python_dataset(images, name="mine", options=DatasetOptions(target=UNLABELED))
    row = source.splits["train"].rows[0]
    assert np.array_equal(source.image("train", 0), images[row])
    with pytest.raises(DatasetError, match=r"items without targets need .*target='none'"):
        python_dataset(list(map(np.asarray, [0, 1])), name="mine")


def test_a_folder_of_images_beside_each_other(tmp_path):
    source = open_it(f"imagefolder:{write_images(tmp_path / 'flat')}")
    assert source.targets.type == UNLABELED
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 6, "test": 2}
    assert any(NOTE in note for note in source.notes)
    for split in ("train", "test"):
        write_images(tmp_path / "own" / split, 4)
    own = open_it(f"imagefolder:{tmp_path / 'own'}")
    assert [sample.id for sample in own.splits["test"]] == [f"test/{row}.png" for row in range(4)]
    one = open_it(f"imagefolder:{write_images(tmp_path / 'one', 1)}")
    assert {split: len(samples) for split, samples in one.splits.items()} == {"train": 1}


def test_folders_in_folders_and_loose_images_are_all_read_without_labels(tmp_path):
    root = write_images(tmp_path / "mixed", 3)
    write_images(root / "a" / "b", 2)
    write_images(root / "c", 2)
    ids = {
        sample.id
        for part in open_it(f"imagefolder:{root}", target=UNLABELED).splits.values()
        for sample in part
    }
    assert ids == {"0.png", "1.png", "2.png", "a/b/0.png", "a/b/1.png", "c/0.png", "c/1.png"}


def test_a_table_of_paths(tmp_path):
    write_images(tmp_path / "flat")
    table = tmp_path / "t.csv"
    table.write_text(
        "path,split\n" + "".join(f"flat/{i}.png,{'test' if i > 5 else 'train'}\n" for i in range(8))
    )
    source = open_it(f"csv:{table}")
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 6, "test": 2}
    assert any(NOTE in note for note in source.notes)
    table.write_text("path,split,grade\n" + "".join(f"flat/{i}.png,train,{i}\n" for i in range(8)))
    source = open_it(f"csv:{table}", target=UNLABELED)
    assert "not read of t.csv (--target none): column grade" in source.notes
    with pytest.raises(RequestError, match="label=grade names labels, and --target none reads none"):
        open_it(f"csv:{table}?label=grade", target=UNLABELED)
    table.write_text("path\n" + "".join(f"flat/{i}.png\n" for i in range(8)))
    with pytest.raises(RequestError, match="t has no labels, so they cannot be regression"):
        open_it(f"csv:{table}", target=REGRESSION)


@pytest.mark.parametrize("form", ["npz", "hdf5", "hf", "wds"])
def test_nothing_but_images(form, tmp_path):
    images = pixels("train")
    if form == "npz":
        np.savez(tmp_path / "a.npz", images=images)
        name, options = f"npz:{tmp_path / 'a.npz'}", {}
    elif form == "hdf5":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["x"] = images
        name, options = f"hdf5:{tmp_path / 'a.h5'}", {}
    elif form == "wds":
        write_tar(tmp_path / "a.tar", [(f"{row}.png", image_bytes(row)) for row in range(7)])
        name, options = f"wds:{tmp_path / 'a.tar'}", {}
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        make_parquet(tmp_path)
        for path in tmp_path.rglob("*.parquet"):
            pq.write_table(pa.table({"image": pq.read_table(path)["image"]}), path)
        name, options = "hf:someone/insects", {"data": tmp_path}
    source = open_it(name, **options)
    assert source.targets.type == UNLABELED
    assert any(NOTE in note for note in source.notes)
    source.image("train", 0).load()


def test_what_could_be_a_label_is_refused(tmp_path):
    def refused(name, error, message):
        with pytest.raises(error, match=message) as caught:
            open_it(name)
        assert "--target none" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert open_it(name, target=UNLABELED).targets.type == UNLABELED

    np.savez(tmp_path / "a.npz", images=pixels("train"), grades=np.zeros(10))
    refused(f"npz:{tmp_path / 'a.npz'}", RequestError, "has no array labels; it has images, grades")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["grades"] = pixels("train"), np.zeros(10)
    refused(f"hdf5:{tmp_path / 'a.h5'}", RequestError, "has no array 'y'; it has grades")
    make_idx(tmp_path / "idx")
    for path in (tmp_path / "idx").glob("*labels*"):
        path.unlink()
    refused(f"idx:{tmp_path / 'idx'}", DatasetError, "has no labels beside it")
    members = [
        (f"{row}.{end}", c) for row in range(7) for end, c in (("png", image_bytes(row)), ("txt", b"a cat"))
    ]
    refused(f"wds:{write_tar(tmp_path / 'a.tar', members)}", DatasetError, "0 has no label")
    flat = write_images(tmp_path / "flat")
    (flat / "labels.csv").write_text("path,label\n")
    refused(f"imagefolder:{flat}", DatasetError, "if labels.csv has them, name csv:")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    make_parquet(tmp_path / "hf")
    for path in (tmp_path / "hf").rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(pa.table({"image": table["image"], "grade": table["label"]}), path)
    with pytest.raises(RequestError, match=r"has no column label; it has image, grade: .*--target none"):
        open_it("hf:someone/insects", data=tmp_path / "hf")


@pytest.mark.parametrize(
    ("values", "field", "target", "names"),
    [
        ([0, 1, 1, 0, 2, 2, 1, 0], "label", SINGLE_LABEL, ("0", "1", "2")),
        (["cat", "dog"] * 4, "meta.kind", SINGLE_LABEL, ("cat", "dog")),
        ([[0, 1], [1, 1]] * 4, "tags", MULTI_LABEL, ("0", "1")),
        ([0.5, 2.0] * 4, "a.b", REGRESSION, ("0",)),
    ],
)
def test_fields_of_json_as_labels(tmp_path, values, field, target, names):
    def record(value):
        outer, _, inner = field.partition(".")
        return {outer: {inner: value}} if field == "meta.kind" else {field: value}

    members = []
    for row, value in enumerate(values):
        members += [(f"{row}.png", image_bytes(row % 7)), (f"{row}.json", json.dumps(record(value)).encode())]
    path = write_tar(tmp_path / "a.tar", members)
    source = open_it(f"wds:{path}?label=json.{field}")
    assert (source.targets.type, source.class_names) == (target, names)
    labels = source._collection.listing.labels
    read = (
        [source.class_names[label] for label in labels]
        if target == SINGLE_LABEL
        else np.squeeze(labels).tolist()
    )
    assert read == ([str(value) for value in values] if target == SINGLE_LABEL else values)
    assert source.identity["label"] == f"json.{field}"
    with pytest.raises(DatasetError, match="has no field 'nope'; it has"):
        open_it(f"wds:{path}?label=json.nope")
    with pytest.raises(DatasetError, match="has no label"):
        open_it(f"wds:{path}?label=cls")


def test_values_of_json_that_are_no_labels(tmp_path):
    for value in (None, -1, [], ["a"], {}):
        members = [("0.png", image_bytes(0)), ("0.json", json.dumps({"label": value}).encode())]
        path = write_tar(tmp_path / "a.tar", members)
        with pytest.raises(DatasetError, match="it must be the index or name of a class, or numbers"):
            open_it(f"wds:{path}?label=json.label")


def test_shards_of_which_some_have_labels(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.png", image_bytes(0)), ("a.cls", b"0")])
    write_tar(tmp_path / "1.tar", [("b.png", image_bytes(1))])
    with pytest.raises(DatasetError, match=r"1\.tar: samples have no label, and those of other shards have"):
        open_it(f"wds:{tmp_path}")
    assert open_it(f"wds:{tmp_path}", target=UNLABELED).targets.type == UNLABELED


def test_kept_indices_of_shards_tell_how_labels_were_read(tmp_path, monkeypatch):
    monkeypatch.setattr("featcache.extraction.sources.shard_index.KEEP_FROM_BYTES", 0)
    members = []
    for row in range(7):
        members += [
            (f"{row}.png", image_bytes(row)),
            (f"{row}.json", json.dumps({"a": row % 2, "b": "x"}).encode()),
        ]
    path = write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # made, then kept
        assert open_it(f"wds:{path}?label=json.a").class_names == ("0", "1")
        assert open_it(f"wds:{path}", target=UNLABELED).targets.type == UNLABELED
        assert open_it(f"wds:{path}?label=json.b", split_seed=1).class_names == ("x",)
