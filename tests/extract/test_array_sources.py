"""Arrays of any form: read as their library reads them, or refused in one line that names the file; nothing is guessed unsaid."""

import contextlib
import gzip
import io
import struct
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image

from featcache.extraction.decoding.rgb import to_rgb
from featcache.extraction.sources import data_folders, resolve_source
from featcache.extraction.sources.array_images import to_image
from featcache.extraction.sources.array_labels import array_targets
from featcache.extraction.sources.card_license import card_license
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.hdf5_rows import ContiguousRows, Hdf5Rows, open_rows
from featcache.extraction.sources.sequences import python_dataset
from featcache.store.errors import DatasetError, FeatcacheError, RequestError
from featcache.store.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from support.datasets import encoded, idx_bytes, pixels

N = 12
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 5, 7, 3), dtype=np.uint8)
Y = np.arange(N) % 3


@pytest.fixture(autouse=True)
def data_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def open_it(name, **options):
    return resolve_source(name, DatasetOptions(**options))


def refused(name, message, **options):
    with pytest.raises(FeatcacheError) as caught:
        open_it(name, **options)
    assert message in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def rgb_of(source):
    """All images by row of the arrays, as the backbone gets them."""
    found = {}
    for split, part in source.splits.items():
        for row, sample in enumerate(part):
            found[int(sample.id.rpartition("/")[2])] = np.asarray(
                to_rgb(source.image(split, row), source.pixels)
            )
    return [found[row] for row in sorted(found)]


# HDF5: where bytes lie.


def stored(kind):
    """Keywords and values of one way to store `IMAGES`."""
    return {
        "contiguous": ({}, IMAGES),
        "chunked": ({"chunks": (5, 5, 7, 3)}, IMAGES),
        "packed": ({"chunks": (5, 5, 7, 3), "compression": "gzip", "shuffle": True}, IMAGES),
        "lzf": ({"compression": "lzf", "fletcher32": True}, IMAGES),
        "big-endian": ({"dtype": ">u2"}, IMAGES.astype("u2") * 256),
        "uint16": ({}, IMAGES.astype("u2") * 256),
        "bool": ({}, IMAGES > 100),
    }[kind]


KINDS = ("contiguous", "chunked", "packed", "lzf", "big-endian", "uint16", "bool")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [0, 512, 2048])
def test_rows_are_those_that_the_library_reads(tmp_path, kind, block):
    keywords, values = stored(kind)
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=block) as file:
        file["pad"] = np.zeros(777, np.uint8)
        file.create_dataset("x", data=values, **keywords)
        file["y"] = Y
    rows = open_rows(tmp_path / "a.h5", "x")
    assert isinstance(rows, ContiguousRows) == (kind in ("contiguous", "uint16", "bool", "big-endian"))
    for part in (slice(0, N), slice(3, 5), slice(N - 1, N), slice(4, 4)):
        np.testing.assert_array_equal(rows[part], values[part])
    source = open_it(f"hdf5:{tmp_path}/a.h5")
    for row, image in enumerate(rgb_of(source)):
        wanted = values[row] * 255 if kind == "bool" else values[row] >> (8 if values.dtype == "u2" else 0)
        np.testing.assert_array_equal(image, wanted)


def test_numbers_of_fewer_bits_than_their_place_are_read_by_the_library(tmp_path):
    kind = h5py.h5t.NATIVE_UINT16.copy()
    kind.set_precision(12)
    kind.set_offset(4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((N, 4, 4))
        dataset = h5py.Dataset(h5py.h5d.create(file.id, b"x", kind, space))
        dataset[...] = np.arange(N * 16).reshape(N, 4, 4)
    rows = open_rows(tmp_path / "a.h5", "x")
    assert isinstance(rows, Hdf5Rows)
    np.testing.assert_array_equal(rows[0:N], np.arange(N * 16).reshape(N, 4, 4))


def test_images_behind_links_are_the_linked_ones(tmp_path):
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["pad"], file["x"] = np.zeros(777, np.uint8), IMAGES
    layout = h5py.VirtualLayout(IMAGES.shape, "u1")
    layout[:] = h5py.VirtualSource("part.h5", "x", IMAGES.shape)
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file["y"] = Y
        file["other"] = np.zeros((64, 20, 20, 3), np.uint8)
        file["x"] = h5py.ExternalLink("part.h5", "/x")
        file.create_virtual_dataset("virtual", layout)
    for name in ("x", "virtual"):
        source = open_it(f"hdf5:{tmp_path}/master.h5?images={name}")
        np.testing.assert_array_equal(rgb_of(source), IMAGES)
        assert name == "virtual" or "is read from" in source.notes[0]


def leak(kind, outside):
    """Adds images, labels or ids that lie in another file."""

    def add(file, name, shape, dtype):
        if kind == "external":
            file.create_dataset(name, shape, dtype, external=[(str(outside), 0, h5py.h5f.UNLIMITED)])
        elif kind == "link":
            file[name] = h5py.ExternalLink(str(outside), "/secret")
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(outside), "secret", shape)
            file.create_virtual_dataset(name, layout)

    return add


@pytest.mark.parametrize("kind", ["external", "link", "virtual"])
@pytest.mark.parametrize("what", ["x", "y", "ids"])
def test_no_other_file_is_read(tmp_path, kind, what):
    (tmp_path / "set").mkdir()
    outside = tmp_path / "secret.h5"
    with h5py.File(outside, "w") as file:
        file["secret"] = np.zeros(IMAGES.shape if what == "x" else N, np.uint8)
    path = tmp_path / "set" / "a.h5"
    arrays = {"x": IMAGES, "y": Y, "ids": np.arange(N)}
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if name == what:
                leak(kind, outside)(file, name, values.shape, "u1")
            else:
                file[name] = values
    refused(f"hdf5:{path}?ids=ids", f"{path}: {what} ")


@pytest.mark.parametrize("what", ["y", "ids"])
def test_labels_and_ids_are_not_linked_even_from_beside(tmp_path, what):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["secret"] = np.arange(N)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in {"x": IMAGES, "y": Y, "ids": np.arange(N)}.items():
            file[name] = h5py.ExternalLink("b.h5", "secret") if name == what else values
    refused(f"hdf5:{tmp_path}/a.h5?ids=ids", "link into another file")


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["y"], file["x"] = Y, IMAGES
    rows = open_rows(tmp_path / "a.h5", "x")
    with (tmp_path / "a.h5").open("rb+") as file:
        file.truncate(3000)
    with pytest.raises(DatasetError, match="was cut after it had been opened"):
        rows[N - 1 : N]


# HDF5 and NPZ: forms.


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return f"hdf5:{path}"


def test_image_files_in_hdf5(tmp_path):
    files = [encoded(image) for image in IMAGES]
    longest = max(map(len, files)) + 3
    with h5py.File(tmp_path / "a.h5", "w") as file:
        lengthy = file.create_dataset("lengthy", (N,), h5py.vlen_dtype(np.uint8))
        for row, content in enumerate(files):
            lengthy[row] = np.frombuffer(content, np.uint8)
        file["opaque"] = np.array([one.ljust(longest, b"\0") for one in files], f"V{longest}")
        file["fixed"] = np.array(files, f"S{longest}")
        file["y"] = Y
    for name in ("lengthy", "opaque", "fixed"):
        source = open_it(f"hdf5:{tmp_path}/a.h5?images={name}")
        np.testing.assert_array_equal(rgb_of(source), IMAGES)
        source.prepare("train", range(len(source.splits["train"])))
        np.testing.assert_array_equal(rgb_of(source), IMAGES)
    np.savez(tmp_path / "a.npz", images=np.array(files, f"S{longest}"), labels=Y)
    np.testing.assert_array_equal(rgb_of(open_it(f"npz:{tmp_path}/a.npz")), IMAGES)


@pytest.mark.parametrize("form", ["lengthy", "fixed", "npz"])
def test_labels_may_be_texts(tmp_path, form):
    texts = np.array(["dog", "cat", "été"])[Y]
    if form == "npz":
        np.savez(tmp_path / "a.npz", images=IMAGES, labels=texts)
        source = open_it(f"npz:{tmp_path}/a.npz")
    else:
        encoded_texts = [one.encode() for one in texts]
        kind = h5py.string_dtype() if form == "lengthy" else "S8"
        source = open_it(write_h5(tmp_path / "a.h5", x=IMAGES, y=np.array(encoded_texts, kind)))
    assert source.class_names == ("cat", "dog", "été")
    of = {sample.id: sample.label for part in source.splits.values() for sample in part}
    assert [source.class_names[of[str(row)]] for row in range(N)] == texts.tolist()


def test_hdf5_that_holds_something_else(tmp_path):
    group = {f"x/{row}.png": np.frombuffer(encoded(IMAGES[row]), np.uint8) for row in range(N)}
    refused(write_h5(tmp_path / "group.h5", y=Y, **group), "x is a group of 12; it must be one array")
    rows = np.array(list(zip(range(N), Y, strict=True)), [("id", int), ("label", int)])
    name = write_h5(tmp_path / "fields.h5", x=IMAGES, rows=rows)
    refused(f"{name}?labels=rows", "rows has the fields id, label")
    refused(write_h5(tmp_path / "latin.h5", x=IMAGES, y=np.array([b"\xe9t\xe9"] * N)), "is not UTF-8")
    refused(write_h5(tmp_path / "one.h5", x=np.uint8(3), y=3), "must be one for each sample")
    refused(write_h5(tmp_path / "none.h5", x=h5py.Empty("u1"), y=Y), "has no values")
    refused(write_h5(tmp_path / "zero.h5", x=IMAGES[:0], y=Y[:0]), "holds no samples")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((N, 9, 9, 2), "an image has 1, 3, 4 channels"),
        ((N, 9, 9, 5), "an image has 1, 3, 4 channels"),
        ((N, 8, 8, 8), "an image has 1, 3, 4 channels"),
        ((N, 16), "images must be [N, H, W]"),
        ((N, 0, 4, 3), "images must be [N, H, W]"),
        ((N, 2, 2, 2, 3), "images must be [N, H, W]"),
    ],
)
def test_what_is_no_image_is_refused_when_it_is_opened(tmp_path, shape, message):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8), labels=Y)
    refused(f"npz:{tmp_path}/a.npz", message)


def test_channels_first_and_a_fourth_channel(tmp_path):
    np.savez(tmp_path / "first.npz", images=np.moveaxis(IMAGES, -1, 1), labels=Y)
    np.testing.assert_array_equal(rgb_of(open_it(f"npz:{tmp_path}/first.npz")), IMAGES)
    np.savez(tmp_path / "four.npz", images=np.concatenate([IMAGES, IMAGES[..., :1]], -1), labels=Y)
    source = open_it(f"npz:{tmp_path}/four.npz")
    np.testing.assert_array_equal(rgb_of(source), IMAGES)
    assert any("of 4 channels the last is taken for transparency" in note for note in source.notes)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(
    ("dtype", "high", "given"),
    [
        ("u2", 4095, "12"),
        ("u2", 4095, "0..4095"),
        ("f4", 1, "0..1"),
        ("f8", 255, "0..255"),
        ("i4", 255, "8"),
        (">u2", 4095, "12"),
    ],
)
def test_pixels_are_scaled_by_the_range_that_is_given(tmp_path, dtype, high, given, grey):
    unit = IMAGES[..., 0] / 255 if grey else IMAGES / 255
    values = (
        (unit * high).round().astype(dtype) if np.dtype(dtype).kind != "f" else (unit * high).astype(dtype)
    )
    np.savez(tmp_path / "a.npz", images=values, labels=Y)
    source = open_it(f"npz:{tmp_path}/a.npz", pixel_range=given)
    wanted = np.stack([IMAGES[..., 0]] * 3, -1) if grey else IMAGES
    assert np.abs(np.stack(rgb_of(source)).astype(int) - wanted).max() <= 1
    assert source.identity["pixel_range"] == given


def test_a_range_that_is_not_known_is_refused_or_said(tmp_path):
    np.savez(tmp_path / "float.npz", images=IMAGES / 255, labels=Y)
    refused(f"npz:{tmp_path}/float.npz", "images is float64 with values from 0 to 1 (12 images")
    np.savez(tmp_path / "signed.npz", images=IMAGES.astype("i2"), labels=Y)
    refused(f"npz:{tmp_path}/signed.npz", "say it with --pixel-range")
    np.savez(tmp_path / "deep.npz", images=IMAGES.astype("u2") * 16, labels=Y)
    notes = open_it(f"npz:{tmp_path}/deep.npz").notes
    assert any("if white is 4095, give --pixel-range 12" in note for note in notes)
    np.savez(tmp_path / "full.npz", images=IMAGES.astype("u2") * 257, labels=Y)
    assert not open_it(f"npz:{tmp_path}/full.npz").notes


def test_strides_and_byte_orders_of_arrays_in_memory():
    for values in (IMAGES[::-1], np.asfortranarray(IMAGES), IMAGES[:, ::-1], IMAGES[:, :, ::-1]):
        for row in range(N):
            np.testing.assert_array_equal(np.asarray(to_image(values[row], "it")), values[row])


# Labels.


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (np.array([0, 1, 2]), SINGLE_LABEL, ("0", "1", "2")),
        (np.array([True, False]), SINGLE_LABEL, ("0", "1")),
        (np.array([0, 2**40, 7], np.uint64), SINGLE_LABEL, ("0", "7", str(2**40))),
        (np.array([[0, 1], [1, 1]]), MULTI_LABEL, ("0", "1")),
        (np.array([0.5, 1.5]), REGRESSION, ("0",)),
        (np.array([["a"], ["b"]]), SINGLE_LABEL, ("a", "b")),
        (np.array(["1", "1.0", "2"]), SINGLE_LABEL, ("1", "2")),
    ],
)
def test_what_labels_are(labels, kind, names):
    found = array_targets([labels], "auto", (), "it")
    assert (found.targets.type, found.targets.names) == (kind, names)
    assert found.targets.mismatch(found.labels, np.ones(len(labels), bool)) is None


@pytest.mark.parametrize(
    ("labels", "target", "message"),
    [
        (np.array([2**64 - 1, 0], np.uint64), "auto", "larger than any index"),
        (np.array([np.nan, 1.0]), SINGLE_LABEL, "not integers from 0"),
        (np.array([np.inf, 1.0]), SINGLE_LABEL, "not integers from 0"),
        (np.array([1e300, 1.0]), SINGLE_LABEL, "larger than any index"),
        (np.array([-1, 1]), "auto", "not integers from 0 (there is -1)"),
        (np.array([1, 2], "c8"), "auto", "must be numbers or texts"),
        (np.array([1, 2], "M8[s]"), "auto", "must be numbers or texts"),
        (np.zeros((3, 4, 4), int), "auto", "one for each image"),
        (np.zeros((3, 0)), "auto", "one for each image"),
        (np.int64(3), "auto", "one for each image"),
        (np.zeros((0, 1)), "auto", "holds no samples"),
        (np.array(["a", "b"]), REGRESSION, "labels are texts"),
        (np.array([["a", "b"]]), "auto", "columns of texts"),
        (np.array([b"\xff"]), "auto", "is not UTF-8"),
    ],
)
def test_labels_that_cannot_be(labels, target, message):
    with pytest.raises(DatasetError) as caught:
        array_targets([labels], target, (), "it")
    assert message in str(caught.value)


def test_integers_of_two_types_stay_classes():
    found = array_targets([np.array([0, 1], np.uint64), np.array([2, 1], np.int64)], "auto", (), "it")
    assert (found.targets.type, found.labels.tolist()) == (SINGLE_LABEL, [0, 1, 2, 1])


def test_what_is_guessed_of_labels_is_said():
    def notes(labels, names=()):
        return " ".join(array_targets([labels], "auto", names, "it").notes)

    assert "all whole numbers; they are read as real values (regression)" in notes(np.array([0.0, 1.0]))
    assert not notes(np.array([1, 2, 3]))  # this is said once, of datasets of all kinds
    assert "a single 1 in every row" in notes(np.eye(3, dtype=int))
    assert "there are 2 class names; the other classes are called" in notes(np.array([0, 1, 2]), ["a", "b"])
    assert not notes(np.array([0, 1, 2]))


# IDX.


def write_idx(folder, images, name="images-idx3", packed=False):
    folder.mkdir()
    for split in ("train", "t10k"):
        for what, content in ((name, images), ("labels-idx1", idx_bytes(Y.astype(np.uint8)))):
            end = ".gz" if packed else ""
            (folder / f"{split}-{what}-ubyte{end}").write_bytes(gzip.compress(content) if packed else content)
    return f"idx:{folder}"


@pytest.mark.parametrize("packed", [False, True])
def test_idx_in_colour(tmp_path, packed):
    source = open_it(write_idx(tmp_path / "set", idx_bytes(IMAGES), name="images-idx4", packed=packed))
    np.testing.assert_array_equal(
        [np.asarray(source.image("test", row).convert("RGB")) for row in range(N)], IMAGES
    )


@pytest.mark.parametrize(
    "head",
    [
        struct.pack(">BBBBIIII", 0, 0, 8, 4, 65536, 65536, 65536, 65536),
        struct.pack(">BBBBIII", 0, 0, 14, 3, 2**31, 2**31, 4),
        struct.pack(">BBBB", 0, 0, 8, 0),
        struct.pack(">BBBB", 0, 0, 8, 255) + bytes(1020),
        struct.pack(">BBBBI", 0, 0, 8, 3, 5),
        b"",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_hostile_idx(tmp_path, head, packed):
    refused(write_idx(tmp_path / "set", head, packed=packed), "train-images-idx3-ubyte")


def test_idx_that_unpacks_without_end_is_not_unpacked(tmp_path):
    content = idx_bytes(IMAGES[..., 0].copy()) + bytes(2**24)
    refused(write_idx(tmp_path / "set", content, packed=True), "has more bytes of values")


# NPZ.


def archive(path, members, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return f"npz:{path}"


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n" * 20])
def test_npz_is_read_as_numpy_reads_it(tmp_path, order, kind, before):
    path = tmp_path / "a.npz"
    archive(path, {"images.npy": npy(np.asarray(IMAGES, order=order)), "labels.npy": npy(Y)}, kind)
    path.write_bytes(before + path.read_bytes())
    np.testing.assert_array_equal(rgb_of(open_it(f"npz:{path}")), IMAGES)


@pytest.mark.parametrize("damage", ["garbage", "cut", "encrypted", "method", "header"])
def test_damaged_npz(tmp_path, damage):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=IMAGES, labels=Y)
    raw = bytearray(path.read_bytes())
    start = raw.find(b"images.npy") + 60
    if damage == "garbage":
        raw[start : start + 40] = b"\xff" * 40
    elif damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "header":
        archive(path, {"images.npy": b"\x93NUMPY\1\0\x10\0{'descr': '|u1', '", "labels.npy": npy(Y)})
        raw = bytearray(path.read_bytes())
    else:
        for mark, flag, method in ((b"PK\3\4", 6, 8), (b"PK\1\2", 8, 10)):
            at = raw.find(mark)
            raw[at + (flag if damage == "encrypted" else method)] = 1 if damage == "encrypted" else 99
    path.write_bytes(raw)
    refused(f"npz:{path}", str(path))


def test_npz_that_declares_more_than_there_is(tmp_path):
    head = (
        npy(np.zeros((N, 8, 8), np.uint8)).replace(b"(12, 8, 8)", b"(9**99, 8)").replace(b"9**99", b"99999")
    )
    refused(
        archive(tmp_path / "a.npz", {"images.npy": head, "labels.npy": npy(Y)}), "array images cannot be read"
    )
    huge = npy(np.zeros((1, 1), np.uint8)).replace(b"(1, 1), }    ", b"(10**9, 1), }")
    refused(
        archive(tmp_path / "b.npz", {"images.npy": huge, "labels.npy": npy(Y)}), "array images cannot be read"
    )


def test_npz_splits_in_any_spelling(tmp_path):
    for before in ("Train_{}", "{}_train"):
        arrays = {before.format(what): values for what, values in {"x": IMAGES, "y": Y}.items()}
        test = before.replace("Train", "TEST").replace("train", "test")
        arrays |= {test.format(what): values[:5] for what, values in {"x": IMAGES, "y": Y}.items()}
        np.savez(tmp_path / "a.npz", **arrays)
        source = open_it(f"npz:{tmp_path}/a.npz")
        assert {split: len(part) for split, part in source.splits.items()} == {"train": N, "test": 5}


@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Test", "TESTING"])
def test_splits_of_hdf5_and_sequences_in_any_spelling(tmp_path, train, test):
    arrays = {f"{train}/x": IMAGES, f"{train}/y": Y, f"{test}/x": IMAGES[:5], f"{test}/y": Y[:5]}
    name = write_h5(tmp_path / "a.h5", **arrays)
    source = open_it(f"{name}?images={{split}}/x&labels={{split}}/y")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": N, "test": 5}
    assert source.splits["test"][0].id == "test/0"
    items = list(zip(IMAGES, Y.tolist(), strict=True))
    source = python_dataset({test: items[:5], train: items}, name="mine")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": N, "test": 5}
    assert "test_splits" not in source.identity


def test_splits_that_cannot_be_told_apart_are_listed(tmp_path):
    arrays = {f"{split}/{what}": values for split in "ab" for what, values in {"x": IMAGES, "y": Y}.items()}
    name = write_h5(tmp_path / "a.h5", **arrays)
    refused(f"{name}?images={{split}}/x&labels={{split}}/y", "it has a, b")
    items = list(zip(IMAGES, Y.tolist(), strict=True))
    with pytest.raises(DatasetError, match="it has a, b"):
        python_dataset({"a": items, "b": items}, name="mine")


def test_sequences_that_break_are_named(tmp_path):
    class Breaks(list):
        def __getitem__(self, row):
            raise KeyError("no such row")

    with pytest.raises(DatasetError, match="item 0 of split all cannot be read"):
        python_dataset(Breaks([1, 2]), name="mine")
    with pytest.raises(RequestError, match="it must be a sequence with a length"):
        python_dataset(iter([]), name="mine")
    (tmp_path / "cut.png").write_bytes(encoded(pixels("train")[0])[:-30])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(DatasetError, match="image 0"):
        python_dataset([(image, 0)] * 4, name="mine")
    items = list(zip(IMAGES, Y.tolist(), strict=True))
    with pytest.raises(DatasetError, match="column patient has 2 values for 12 samples"):
        python_dataset(items, name="mine", columns={"patient": [1, 2]})


# What is unpacked.


def test_packed_files_are_unpacked_within_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(data_folders, "UNPACKED_BYTES", 2**20)
    (tmp_path / "a.h5.gz").write_bytes(gzip.compress(bytes(2**22)))
    refused(f"hdf5:{tmp_path}/a.h5.gz", "a.h5.gz unpacks to more than")
    (tmp_path / "b.h5.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\xff" * 60)
    refused(f"hdf5:{tmp_path}/b.h5.gz", "b.h5.gz is damaged")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


# Parquet and its card.


def write_parquet(folder, metadata=None, **columns):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir(exist_ok=True)
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=5)
    return folder


FILES = [encoded(image) for image in IMAGES]


def test_images_of_parquet_in_every_form(tmp_path):
    pa = pytest.importorskip("pyarrow")
    longest = max(map(len, FILES))
    forms = {
        "binary": pa.array(FILES),
        "large": pa.array(FILES, pa.large_binary()),
        "fixed": pa.array([one.ljust(longest, b"\0") for one in FILES], pa.binary(longest)),
        "struct": pa.array([{"bytes": one, "path": None} for one in FILES]),
    }
    for name, column in forms.items():
        source = open_it("hf:a/b", data=write_parquet(tmp_path / name, image=column, label=Y))
        np.testing.assert_array_equal(
            [np.asarray(source.image("test", row).convert("RGB")) for row in range(N)], IMAGES
        )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": Y.tolist(), "label": Y}, "column 'image' is int64; images must be the bytes"),
        ({"image": [[one] for one in FILES], "label": Y}, "give every image a row of its own"),
        ({"image": ["a.png"] * N, "label": Y}, "column 'image' is string"),
        ({"image": [{"path": "a.png"}] * N, "label": Y}, "images must be the bytes"),
        ({"image": [{"bytes": None, "path": "/etc/passwd"}] * N, "label": Y}, "holds no images"),
        ({"image": FILES, "label": [None] * N}, "row 0 has no label"),
        ({"image": FILES, "label": [2**64 - 1] * N}, "larger than any index"),
        ({"image": FILES, "label": [[1, 2], [1]] * (N // 2)}, "lists of different lengths"),
        ({"image": FILES, "label": [{"a": 1}] * N}, "labels are dict"),
        ({"image": FILES, "label": [b"\xff"] * N}, "is not UTF-8"),
        ({"image": FILES, "label": ["a\nb", "c"] * (N // 2)}, "has control characters"),
        ({"image": FILES[:0], "label": Y[:0]}, ""),
    ],
)
def test_parquet_that_holds_something_else(tmp_path, columns, message):
    pa = pytest.importorskip("pyarrow")
    if columns["label"] is not Y and isinstance(columns["label"], list) and 2**64 - 1 in columns["label"]:
        columns = {**columns, "label": pa.array(columns["label"], pa.uint64())}
    refused("hf:a/b", message, data=write_parquet(tmp_path / "set", **columns))


@pytest.mark.parametrize(
    "names", [b"7", b"[1, null]", b'"abc"', b'["a\\nb", "b", "c"]', b'["\\ud800", "b", "c"]']
)
def test_class_names_of_parquet_are_held_to_be_texts(tmp_path, names):
    metadata = b'{"info": {"features": {"label": {"names": ' + names + b"}}}}"
    folder = write_parquet(tmp_path / "set", metadata, image=FILES, label=Y)
    refused("hf:a/b", str(folder), data=folder)


def test_metadata_that_is_nested_without_end_is_no_metadata(tmp_path):
    folder = write_parquet(tmp_path / "set", b"[" * 100_000, image=FILES, label=Y)
    assert open_it("hf:a/b", data=folder).class_names == ("0", "1", "2")


@pytest.mark.parametrize("seed", range(6))
def test_damaged_parquet(tmp_path, seed):
    folder = write_parquet(tmp_path / "set", image=FILES, label=Y)
    path = folder / "train-00000-of-00001.parquet"
    raw, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(4, len(raw), 60):
        raw[place] = rng.integers(256)
    path.write_bytes(raw)
    # Some damage is in what nobody reads; all other is a `FeatcacheError`.
    with contextlib.suppress(FeatcacheError):
        source = open_it("hf:a/b", data=folder)
        for row in range(len(source.splits["train"])):
            source.image("train", row)


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (b"---\nlicense: cc-by-4.0\n---\n# Insects\n", "cc-by-4.0"),
        (b"---\r\nlicense: 'mit' # see below\r\n---\r\n", "mit"),
        (b"---\nlicense: [mit, apache-2.0]\ntags: [a]\n---\n", "mit, apache-2.0"),
        (b"---\nlicense:\n- mit\n- apache-2.0\ntags:\n- a\n---\n", "mit, apache-2.0"),
        (b"---\ntags:\n  license: no\nlicense: 12\n---\n", "12"),
        (b"---\na: &a [x]\nlicense: *a\n---\n", None),
        (b"---\nlicense: !!python/object/apply:os.system ['x']\n---\n", None),
        (b"---\nlicense: " + b"[" * 3000 + b"\n---\n", None),
        (b"---\nlicense: [a, {b: ]\n---\n", None),
        (b"---\nlicense: a\x1b[2J\n---\n", "a\\x1b[2J"),
        (b"license: mit\n", None),
        (b"\xff\xfe\0", None),
        (b"", None),
    ],
)
def test_licences_of_cards(tmp_path, text, licence):
    (tmp_path / "README.md").write_bytes(text)
    assert card_license(tmp_path / "README.md") == licence


def test_other_splits_beside_a_file_of_one_split_are_said(tmp_path):
    for split in ("train", "test"):
        write_h5(tmp_path / f"level_2_split_{split}_x.h5", x=IMAGES)
        write_h5(tmp_path / f"level_2_split_{split}_y.h5", y=Y)
        np.savez(tmp_path / f"{split}.npz", images=IMAGES, labels=Y)
    alone = open_it(f"hdf5:{tmp_path}/level_2_split_train_x.h5")
    assert "only level_2_split_train_x.h5 is read; beside it lies level_2_split_test_x.h5" in alone.notes
    assert "only train.npz is read; beside it lies test.npz" in open_it(f"npz:{tmp_path}/train.npz").notes
    both = open_it(f"hdf5:{tmp_path}/level_2_split_{{split}}_x.h5")
    assert not any("beside" in note for note in both.notes)


def test_idx_files_in_a_folder_below_are_named(tmp_path):
    write_idx(tmp_path / "raw", IMAGES)
    refused(f"idx:{tmp_path}", f"name idx:{tmp_path}/raw, which has")


def test_labels_that_count_from_one_are_said_once(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=Y + 1)
    assert list(open_it(f"npz:{tmp_path}/a.npz").notes) == [
        "a: 1 of 4 classes have no sample (0); labels count from 1"
    ]
