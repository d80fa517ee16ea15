"""Foreign files: nothing outside of them is read, nothing is believed that they declare, and what is imported can be read."""

import io
import os
import struct

import h5py
import numpy as np
import pytest

from featcache.store.convert.h5_files import find_dataset, find_linked, open_h5, read_texts
from featcache.store.convert.import_files import folder_source
from featcache.store.convert.import_h5 import h5_source
from featcache.store.convert.import_selection import ImportSelection
from featcache.store.convert.importing import import_source
from featcache.store.convert.npy_rows import open_npy
from featcache.store.errors import CacheError, DatasetError
from featcache.store.npy import npy_layout, read_npy
from featcache.store.progress import Silent
from featcache.store.reading.reader import open_cache
from featcache.store.targets import Targets, names_problem

N = 130
SECRET = b"TOP-SECRET-VALUE".ljust(16 * N, b"x")


def foreign(path, ids=None, labels=None, names=None):
    """A file of features as others write it; `ids(file)` adds the dataset ``train/ids``."""
    with h5py.File(path, "w") as file:
        file["train/feats"] = np.random.default_rng(0).standard_normal((N, 8)).astype("f4")
        file["train/y"] = np.arange(N) % 3 if labels is None else labels
        if names is not None:
            file["train/y"].attrs["class_names"] = np.array(names, h5py.string_dtype())
        if callable(ids):
            ids(file)
        elif ids is not None:
            file.create_dataset("train/ids", data=np.array(ids, h5py.string_dtype()))
    return path


def imported(path, root, *, ids=False, reporter=None, **choice):
    choice = ImportSelection(
        features=["train/feats"], labels=["train/y"], ids=["train/ids"] if ids else [], **choice
    )
    with open_h5(path) as file:
        source = h5_source(file, path, choice)
        return import_source(source, [root], dataset="d", model="m", reporter=reporter)


def virtual(source_file):
    def add(file):
        layout = h5py.VirtualLayout((N,), "S16")
        layout[:] = h5py.VirtualSource(source_file, "ids", (N,))
        file.create_virtual_dataset("train/ids", layout)

    return add


ELSEWHERE = {
    "external storage": lambda secret, private: (
        lambda file: file.create_dataset(
            "train/ids", (N,), "S16", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        )
    ),
    "virtual": lambda secret, private: virtual(str(private)),
    "external link": lambda secret, private: (
        lambda file: file.update({"train/ids": h5py.ExternalLink(str(private), "ids")})
    ),
    "soft link to an external link": lambda secret, private: (
        lambda file: file.update(
            {"out": h5py.ExternalLink(str(private), "ids"), "train/ids": h5py.SoftLink("/out")}
        )
    ),
    "group behind an external link": lambda secret, private: (
        lambda file: file.update(
            {"out": h5py.ExternalLink(str(private), "/"), "train/ids": h5py.SoftLink("/out/ids")}
        )
    ),
}


@pytest.mark.parametrize("way", ELSEWHERE)
@pytest.mark.parametrize("relative", [False, True])
def test_no_bytes_of_another_file_are_imported(tmp_path, way, relative):
    secret, private = tmp_path / "secret", tmp_path / "private.h5"
    secret.write_bytes(SECRET)
    with h5py.File(private, "w") as file:
        file["ids"] = np.array([b"PRIVATE-%06d" % row for row in range(N)])
    named = (secret.name, private.name) if relative else (secret, private)
    path = foreign(tmp_path / "a.h5", ELSEWHERE[way](*named))
    with pytest.raises(DatasetError, match=r"a\.h5: train/ids .*(another|from another) file"):
        imported(path, tmp_path / "root", ids=True)
    assert not (tmp_path / "root").exists()
    with open_h5(path) as file, pytest.raises(DatasetError, match="another file"):
        find_dataset(file, path, "train/ids")


def test_links_within_a_file_are_followed(tmp_path):
    def add(file):
        file["deep/er/ids"] = np.array([b"id-%d" % row for row in range(N)])
        file["deep/near"] = h5py.SoftLink("er/ids")
        file["train/ids"] = h5py.SoftLink("/deep/near")

    result = imported(foreign(tmp_path / "a.h5", add), tmp_path / "root", ids=True)
    assert open_cache(result.path)["train"].sample_ids()[:2] == ["id-0", "id-1"]


def test_a_virtual_array_of_the_same_file_is_read(tmp_path):
    def add(file):
        file["ids"] = np.array([b"id-%012d" % row for row in range(N)])
        virtual(".")(file)

    result = imported(foreign(tmp_path / "a.h5", add), tmp_path / "root", ids=True)
    assert open_cache(result.path)["train"].sample_ids()[1] == "id-000000000001"


def test_links_that_lead_in_a_circle_end(tmp_path):
    path = foreign(
        tmp_path / "a.h5",
        lambda file: file.update({"train/ids": h5py.SoftLink("/b"), "b": h5py.SoftLink("/train/ids")}),
    )
    with pytest.raises(DatasetError, match="lead in a circle"):
        imported(path, tmp_path / "root", ids=True)


def unknown_filter(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((10,))
    plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((N,))
    h5py.h5d.create(file["train"].id, b"ids", h5py.h5t.NATIVE_INT64, space, plist)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (unknown_filter, "packed with filter 32001"),
        (
            lambda file: file.create_dataset("train/ids", (2**40,), "i8"),
            "8796093022208 bytes, more than the file",
        ),
        (lambda file: file.create_dataset("train/ids", (2**40,), "i8", chunks=(9,)), "more than the file"),
        (
            lambda file: file.create_dataset("train/ids", (N, 2**33), "i1", chunks=(1, 9)),
            "more than the file",
        ),
        (lambda file: file.create_dataset("train/ids", data=h5py.Empty("S3")), "has no values"),
        (lambda file: file.update({"train/ids": np.array([b"\xff"] * N)}), "row 0 is not UTF-8"),
    ],
)
def test_what_is_declared_is_held_to_what_is_there(tmp_path, add, message):
    with pytest.raises(DatasetError, match=message):
        imported(foreign(tmp_path / "a.h5", add), tmp_path / "root", ids=True)


def test_an_array_that_ends_behind_the_file_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros((2000, 64), "u1")
        offset = file["x"].id.get_offset()
    raw = bytearray(path.read_bytes()[: offset + 100])
    end = struct.pack("<Q", path.stat().st_size)
    raw[raw.find(end) : raw.find(end) + 8] = struct.pack("<Q", len(raw))
    path.write_bytes(raw)
    with open_h5(path) as file, pytest.raises(DatasetError, match=r"a\.h5: x"):
        find_dataset(file, path, "x")


def test_texts_that_unpack_to_far_more_than_the_file_are_refused(tmp_path, monkeypatch):
    path = foreign(
        tmp_path / "a.h5",
        lambda file: file.create_dataset("train/ids", data=np.array([b"x" * 5000] * N), compression="gzip"),
    )
    monkeypatch.setattr("featcache.store.convert.h5_files.SMALL_BYTES", 1000)
    with open_h5(path) as file, pytest.raises(DatasetError, match="longer than the whole file"):
        read_texts(file["train/ids"], path, "train/ids")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DatasetError, match="no regular file"):
        open_h5(tmp_path / "pipe.h5")
    with pytest.raises(DatasetError, match="no regular file"):
        open_npy(tmp_path / "pipe.npy")


def test_linked_arrays_are_found_beside_the_file_and_nowhere_else(tmp_path):
    folder = tmp_path / "set"
    (folder / "parts").mkdir(parents=True)
    for part in (folder / "parts" / "p.h5", tmp_path / "out.h5"):
        with h5py.File(part, "w") as file:
            file["x"] = np.arange(5)
    (folder / "sly.h5").symlink_to(tmp_path / "out.h5")
    with h5py.File(folder / "master.h5", "w") as file:
        file["x"] = h5py.ExternalLink("parts/p.h5", "/x")
        file["soft"] = h5py.SoftLink("/x")
        file["self"] = h5py.ExternalLink("master.h5", "/self")
        for name, place in {"up": "../out.h5", "abs": str(tmp_path / "out.h5"), "sly": "sly.h5"}.items():
            file[name] = h5py.ExternalLink(place, "/x")
        file["gone"] = h5py.ExternalLink("gone.h5", "/x")
    for name in ("x", "soft"):
        assert find_linked(folder / "master.h5", name) == (folder / "parts" / "p.h5", "/x")
    assert find_linked(folder / "master.h5", "nothing") is None
    for name in ("up", "abs", "sly"):
        with pytest.raises(DatasetError, match="outside of the folder"):
            find_linked(folder / "master.h5", name)
    with pytest.raises(DatasetError, match="not there"):
        find_linked(folder / "master.h5", "gone")
    with pytest.raises(DatasetError, match="circle"):
        find_linked(folder / "master.h5", "self")


class Messages(Silent):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["a", "b\nc", "d"]}, "control characters"),
        ({"names": ["a", "b\x1b[2J", "d"]}, "control characters"),
        ({"names": ["a", "b"]}, "label 2, but there are 2 class names"),
        ({"ids": [""] * N}, "row 0 has an empty id"),
        ({"ids": ["same"] * N}, "rows 0 and 1 have the same id 'same'"),
        ({"ids": ["x" * 70_000, *map(str, range(N - 1))]}, "an id has 70000 bytes"),
        ({"ids": list(map(str, range(N - 1)))}, "129 sample ids, the features have 130 rows"),
        ({"labels": np.full(N, 2**64 - 1, "u8")}, "larger than any index"),
        ({"labels": np.arange(N) - 1}, "label -1"),
        ({"labels": np.full(N, np.nan)}, "must be integers from 0"),
    ],
)
def test_what_no_cache_could_hold_is_not_imported(tmp_path, options, message):
    path = foreign(tmp_path / "a.h5", **options)
    with pytest.raises(DatasetError, match=message):
        imported(path, tmp_path / "root", ids="ids" in options)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("largest", [2**40, 5_000_000])
def test_numbers_far_above_the_count_of_classes_become_their_names(tmp_path, largest):
    labels = np.where(np.arange(N) == 3, largest, np.arange(N) % 2)
    messages = Messages()
    result = imported(foreign(tmp_path / "a.h5", labels=labels), tmp_path / "root", reporter=messages)
    cache = open_cache(result.path)
    assert cache.inventory.class_names == ("0", "1", str(largest))
    assert np.array_equal(cache["train"].labels(), np.where(labels == largest, 2, labels))
    assert f"labels go up to {largest}, and 3 occur" in messages.said[0]


def test_labels_with_small_gaps_are_kept_and_said(tmp_path):
    messages = Messages()
    path = foreign(tmp_path / "a.h5", labels=np.arange(N) % 3 + 1)
    cache = open_cache(imported(path, tmp_path / "root", reporter=messages).path)
    assert cache.inventory.class_names == ("0", "1", "2", "3")
    assert cache["train"].labels().tolist() == (np.arange(N) % 3 + 1).tolist()
    assert messages.said[0] == "note: no sample has label 0: 1 of 4 classes are empty"


def test_names_are_held_to_one_rule_by_writer_and_reader():
    for name in ("a\tb", "a\x00", "\ud800"):
        assert names_problem([name])
        with pytest.raises(CacheError):
            Targets.from_dict({}, (name,), "here")
    assert names_problem(["", "a", "a", "\u202e\x9b"]) is None
    assert names_problem(["a"], ["k\tg"])


def npy(header, data=b""):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\3\0" + bytes(20),
        npy("{'descr': '|u1', 'shape': ("),
        npy("{'descr': '''"),
        npy("{'descr': '\0'}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 8)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8)}", bytes(64)),
        npy("{'descr': '|V2147483647', 'fortran_order': False, 'shape': (3,)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", b"cos\nsystem\n(S'true'\ntR."),
        npy("{'descr': [('a', '<f4', (2, 'x'))], 'fortran_order': False, 'shape': (3,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 40 + ")" * 40 + "}"),
    ],
)
def test_hostile_npy_heads(tmp_path, raw):
    with pytest.raises(ValueError, match=r"\w"):
        read_npy(io.BytesIO(raw), len(raw))
    (tmp_path / "a.npy").write_bytes(raw)
    with pytest.raises(DatasetError, match=r"a\.npy cannot be read as an array"):
        open_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">i4", "<f8", "S3", "?"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4), (0, 3), ()])
def test_npy_is_read_as_numpy_reads_it(tmp_path, order, dtype, shape):
    values = np.asarray(np.arange(np.prod(shape)).reshape(shape), order=order).astype(dtype, order=order)
    np.save(tmp_path / "a.npy", values)
    raw = (tmp_path / "a.npy").read_bytes()
    read = read_npy(io.BytesIO(raw), len(raw))
    assert (read.dtype, read.shape) == (values.dtype, values.shape)
    assert np.array_equal(read, values)
    assert npy_layout(io.BytesIO(raw), len(raw)).start + values.nbytes == len(raw)
    if shape:
        rows = open_npy(tmp_path / "a.npy").rows(0, shape[0])
        assert rows.dtype.isnative
        assert np.array_equal(rows, values)


def test_a_folder_of_files_is_held_to_the_same_rules(tmp_path):
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    np.save(folder / "train" / "layer_00.npy", np.zeros((5, 8), "f4"))
    np.save(folder / "train" / "labels.npy", np.array([0, 1, 2, 0, 9_000_000]))
    np.save(folder / "train" / "ids.npy", np.array(["a", "b", "c", "d", "a"]))
    with pytest.raises(DatasetError, match="rows 0 and 4 have the same id 'a'"):
        folder_source(folder, ImportSelection(), {".npy": open_npy})
    (folder / "train" / "ids.npy").unlink()
    source = folder_source(folder, ImportSelection(), {".npy": open_npy})
    assert source.targets.names == ("0", "1", "2", "9000000")
    assert source.splits[0].columns["label"].tolist() == [0, 1, 2, 0, 3]
