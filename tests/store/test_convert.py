"""Exports and imports: equal bit for bit, whole or not there, in bounded steps, and refused with the reason."""

import errno
import json
import os
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from featcache.formats.torch_files import open_tensor
from featcache.store.convert import export_h5, selection, steps
from featcache.store.convert.export import export_cache
from featcache.store.convert.h5_files import open_h5
from featcache.store.convert.import_files import folder_source
from featcache.store.convert.import_h5 import h5_source
from featcache.store.convert.import_selection import ImportSelection
from featcache.store.convert.importing import import_source
from featcache.store.convert.npy_rows import open_npy
from featcache.store.errors import CacheError, DatasetError, FeatcacheError, RequestError, UnknownNameError
from featcache.store.progress import Silent
from featcache.store.reading.reader import open_cache
from featcache.store.reading.split import SplitReader
from featcache.store.requests import record_request, recorded_requests
from featcache.store.targets import TARGET_KINDS, UNLABELED
from support.caches import all_files, cache_folder, make_content, make_plan, write_cache

OPENERS = {".npy": open_npy, ".pt": open_tensor}
DTYPES = ("float16", "bfloat16", "float32")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Power losses are not what is tested here, and syncing is most of the time of writing a small cache."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Notes(Silent):
    """Keeps the messages."""

    def __init__(self):
        self.notes = []

    def message(self, text):
        self.notes.append(text)


def make(root, **options):
    plan = make_plan(options.pop("samples", {"train": 300, "test": 90}), **options)
    content = make_content(plan)
    cache = write_cache(cache_folder(root, plan), plan, content)
    record_request(cache.directory, {"model": "x"})
    return cache, content


def import_h5(path, root, choice=ImportSelection(), **names):  # noqa: B008
    names = {"dataset": None, "model": None} | names
    with open_h5(path) as file:
        return import_source(h5_source(file, path, choice), [root], **names)


def import_folder(path, root, choice=ImportSelection(), **names):  # noqa: B008
    names = {"dataset": None, "model": None} | names
    return import_source(folder_source(path, choice, OPENERS), [root], **names)


def same_values(directory):
    """Everything in a cache but what says when and from where it came."""
    files = all_files(directory)
    return {name: data for name, data in files.items() if name not in ("provenance.json", "README.md")}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    to=st.sampled_from(["h5", "npy"]),
    rows=st.tuples(st.integers(1, 300), st.integers(1, 20)),
    tokens=st.sampled_from([("cls",), ("ap",), ("cls", "ap")]),
    num_layers=st.integers(1, 4),
    step_bytes=st.integers(300, 5000),
    target_kind=st.sampled_from(TARGET_KINDS),
)
def test_a_cache_comes_back_the_same(
    tmp_path_factory, dtype, to, rows, tokens, num_layers, step_bytes, target_kind
):
    root = tmp_path_factory.mktemp("trip")
    samples = {"train": rows[0], "test": rows[1]}
    options = {"dtype": dtype, "tokens": tokens, "num_layers": num_layers, "target_kind": target_kind}
    cache, _ = make(root / "a", samples=samples, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "STEP_BYTES", step_bytes)
        export_cache(cache, to, root / "out")
        back = (import_h5 if to == "h5" else import_folder)(root / "out", root / "b")
    assert (back.key, back.cached) == (cache.key, False)
    assert back.path.relative_to(root / "b") == cache.directory.relative_to(root / "a")
    assert same_values(back.path) == same_values(cache.directory)
    provenance = open_cache(back.path).provenance
    assert provenance["imported_from"] == "out"
    assert provenance["model_names"] == ["tiny"]
    assert recorded_requests(back.path) == [{"model": "x"}]
    again = (import_h5 if to == "h5" else import_folder)(root / "out", root / "b")
    assert again.cached


@pytest.mark.parametrize("dtype", DTYPES)
def test_hdf5_is_plain_and_can_be_mapped(tmp_path, dtype):
    cache, content = make(tmp_path, dtype=dtype, num_classes=5000)
    export_cache(cache, "h5", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        for split, columns in content.items():
            for name in ("norm2", "final", "label"):
                dataset = file[split][name]
                assert (dataset.chunks, dataset.compression) == (None, None)
                mapped = np.memmap(
                    tmp_path / "out.h5", dataset.dtype, "r", dataset.id.get_offset(), dataset.shape
                )
                np.testing.assert_array_equal(mapped.view(np.uint8), columns[name].view(np.uint8))
            assert list(file[split]["norm2"].attrs["layers"]) == ["0", "1", "2"]
            assert list(file[split]["norm2"].attrs["tokens"]) == ["cls", "ap"]
            assert file[split]["norm2"].attrs["logical_dtype"] == dtype
            assert list(file[split]["sample_id"].asstr()[:2]) == [f"{split}-0", f"{split}-1"]
        assert len(file["train/label"].attrs["class_names"]) == 5000
        assert json.loads(file.attrs["spec"]) == cache.spec.to_dict()


@pytest.mark.parametrize(
    ("dtype", "target_kind"), [*zip(DTYPES, TARGET_KINDS, strict=False), (DTYPES[0], UNLABELED)]
)
def test_npy_and_safetensors_are_what_their_libraries_read(tmp_path, dtype, target_kind):
    cache, content = make(tmp_path, dtype=dtype, target_kind=target_kind)
    for to in ("npy", "safetensors"):
        export_cache(cache, to, tmp_path / to, layers="0,final", tokens="ap", splits=["test"])
    columns = content["test"]
    wanted = {"0": columns["norm2"][:, 0, 1:], "final": columns["final"][:, 0, 1:]}
    folder = tmp_path / "npy" / "test"
    labels = [] if target_kind == UNLABELED else ["labels.npy"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *labels,
        *("layer_00.npy", "layer_final.npy", "sample_ids.npy", "valid.npy"),
    ]
    np.testing.assert_array_equal(np.load(folder / "layer_00.npy"), wanted["0"])
    np.testing.assert_array_equal(np.load(folder / "layer_final.npy"), wanted["final"])
    assert np.load(folder / "sample_ids.npy")[89] == "test-89"

    path = tmp_path / "safetensors" / "test.safetensors"
    tensors = load_file(path)
    stored = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    for layer, values in wanted.items():
        tensor = tensors[f"layer.{layer}"]
        assert tensor.dtype == stored
        np.testing.assert_array_equal(tensor.view(values.dtype), values)
    assert ("label" in tensors) == ("label" in columns) == (target_kind != UNLABELED)
    if labels:
        np.testing.assert_array_equal(tensors["label"], columns["label"])
    assert tensors["valid"].all()
    with safe_open(path, "numpy") as file:
        assert file.metadata()["key"] == cache.key
        assert json.loads(file.metadata()["tokens"]) == ["ap"]


def test_a_part_comes_back_under_the_same_key(tmp_path):
    cache, content = make(tmp_path / "a")
    export_cache(cache, "h5", tmp_path / "part.h5", layers="2,final", tokens="ap", splits=["test"])
    back = open_cache(import_h5(tmp_path / "part.h5", tmp_path / "b").path)
    assert back.key == cache.key
    assert back["test"].layers == ("2", "final")
    np.testing.assert_array_equal(
        back["test"].load(["2"], ["ap"])[:, 0, 0], content["test"]["norm2"][:, 2, 1]
    )
    export_cache(cache, "h5", tmp_path / "no-final.h5", layers="0,1")
    with pytest.raises(CacheError, match=f"holds less than no-final.h5 .*: featcache rm {back.directory}"):
        import_h5(tmp_path / "no-final.h5", tmp_path / "b")
    with pytest.raises(DatasetError, match="lacks layer final"):
        import_h5(tmp_path / "no-final.h5", tmp_path / "c")
    assert import_h5(tmp_path / "part.h5", tmp_path / "a").cached, "the cache holds more than the part"


def test_an_export_that_was_changed_does_not_get_the_key(tmp_path):
    cache, _ = make(tmp_path / "a")
    export_cache(cache, "h5", tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["test/final"][3, 0, 1, 2] = 7
    with pytest.raises(DatasetError, match="split test is not what was exported"):
        import_h5(tmp_path / "out.h5", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("to", ["h5", "npy", "safetensors"])
def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch, to):
    cache, _ = make(tmp_path / "root")
    monkeypatch.setattr(steps, "STEP_BYTES", 2000)
    gather, calls = SplitReader.gather, []

    def interrupted(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        assert not (tmp_path / "out").exists()
        return gather(self, *arguments, **options)

    monkeypatch.setattr(SplitReader, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_cache(cache, to, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    # What a killed run left does not stand in the way of the next one, and what others keep under such names stays.
    monkeypatch.undo()
    mine, left = tmp_path / "out.partial" / "mine.txt", tmp_path / "out.0123456789ab.partial"
    mine.parent.mkdir()
    mine.write_text("mine")
    left.write_bytes(b"half")
    reporter = Notes()
    export_cache(cache, to, tmp_path / "out", reporter=reporter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", left.name, "out.partial", "root"]
    assert mine.read_text() == "mine"
    assert [str(left) in note for note in reporter.notes] == [True]


def test_a_disk_that_fills_up_under_hdf5_is_an_ordinary_error(tmp_path, monkeypatch):
    cache, _ = make(tmp_path / "root")
    monkeypatch.setattr(steps, "STEP_BYTES", 2000)
    write, calls = export_h5._write, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(export_h5, "_write", full)
    with pytest.raises(FeatcacheError, match=r"out cannot be written \(No space left on device\); nothing"):
        export_cache(cache, "h5", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_features_are_read_in_bounded_steps(tmp_path, monkeypatch):
    cache, _ = make(tmp_path / "a")
    monkeypatch.setattr(steps, "STEP_BYTES", 1000)
    gather, sizes = SplitReader.gather, []

    def measured(self, *arguments, **options):
        values = gather(self, *arguments, **options)
        sizes.append(values.nbytes)
        return values

    monkeypatch.setattr(SplitReader, "gather", measured)
    for to in ("h5", "npy", "safetensors"):
        export_cache(cache, to, tmp_path / to)
    assert max(sizes) <= 1000
    assert sum(sizes) == 3 * 390 * 4 * 2 * 4 * 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "hdf"}, UnknownNameError, "unknown format 'hdf'; .*h5"),
        ({"layers": "7"}, UnknownNameError, "unknown layer '7'"),
        ({"tokens": "patches"}, UnknownNameError, "unknown token kind 'patches'"),
        ({"splits": ["val"]}, UnknownNameError, "unknown split 'val'; valid: train, test"),
        ({"out": "a"}, RequestError, "a exists already; name another with --out, or remove it"),
        ({"out": "none/x.h5"}, RequestError, "folder .*none does not exist"),
    ],
)
def test_exports_that_cannot_be(tmp_path, options, error, message):
    cache, _ = make(tmp_path / "a", samples={"train": 3, "test": 3})
    options = {"to": "h5", "out": "x.h5"} | options
    options["out"] = tmp_path / options["out"]
    with pytest.raises(error, match=message):
        export_cache(cache, **options)


def foreign_h5(path, **changes):
    """Two splits of 3 layers of width 4, each as one dataset ``[N, L, D]``."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split, rows in (("train", 150), ("test", 20)):
            file[f"{split}/feats"] = rng.standard_normal((rows, 3, 4)).astype(changes.get("dtype", "f4"))
            file[f"{split}/y"] = np.arange(rows) % 3
        for name, values in changes.items():
            if "/" in name:
                del file[name]
                file[name] = values
    return path


BOTH = {"features": ("train/feats", "test/feats"), "labels": ("train/y", "test/y")}


def test_foreign_hdf5(tmp_path):
    path = foreign_h5(tmp_path / "feats.h5")
    result = import_h5(path, tmp_path / "root", ImportSelection(**BOTH), dataset="Flowers", model="my-vit")
    assert result.path.parent.name == "flowers"
    cache = open_cache(result.path)
    assert cache.spec.backbone.architecture == "imported:my-vit"
    assert cache.spec.backbone.preprocessing == {"unknown": True}
    assert cache["train"].layers == ("0", "1", "final")
    assert cache["train"].sample_ids()[:2] == ["0", "1"]
    with h5py.File(path) as file:
        features = file["train/feats"][:]
        np.testing.assert_array_equal(cache["train"].load(["0", "1", "final"], ["cls"])[:, :, 0], features)
        np.testing.assert_array_equal(cache["test"].labels(), file["test/y"][:])
    # The same content under the same name is the same cache; other content is another.
    assert import_h5(path, tmp_path / "root", ImportSelection(**BOTH), dataset="x", model="my-vit").cached
    half = import_h5(
        path, tmp_path / "root", ImportSelection(**BOTH, dtype="bfloat16"), dataset="x", model="my-vit"
    )
    assert half.key != result.key
    bits = open_cache(half.path)["train"].load(["0", "1", "final"], ["cls"])[:, :, 0]
    np.testing.assert_array_equal(bits, features.astype(ml_dtypes.bfloat16).view(np.uint16))


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_foreign_layer_files(tmp_path, suffix, dtype):
    import torch

    rng = np.random.default_rng(0)
    content = {}
    for split, rows in (("train", 130), ("test", 5)):
        folder = tmp_path / "feats" / split
        folder.mkdir(parents=True)
        # As torch holds it, whatever numpy can.
        values = torch.from_numpy(rng.standard_normal((3, rows, 2, 4))).to(getattr(torch, dtype))
        content[split] = (
            values.view(torch.int16).numpy().view("<u2") if dtype == "bfloat16" else values.numpy()
        )
        labels = torch.arange(rows) % 2
        for index in range(3):
            path = folder / f"layer_{index:02d}{suffix}"
            torch.save(values[index].clone(), path) if suffix == ".pt" else np.save(
                path, content[split][index]
            )
        path = folder / f"labels{suffix}"
        torch.save(labels, path) if suffix == ".pt" else np.save(path, labels.numpy())
    choice = ImportSelection(tokens=("cls", "ap"), dtype=dtype, class_names=["a", "b"])
    result = import_folder(tmp_path / "feats", tmp_path / "root", choice, dataset="d", model="m")
    cache = open_cache(result.path)
    assert cache.inventory.class_names == ("a", "b")
    for split, values in content.items():
        loaded = cache[split].load(["0", "1", "final"], ["cls", "ap"])
        np.testing.assert_array_equal(loaded.swapaxes(0, 1), values)


@pytest.mark.parametrize(
    ("changes", "choice", "message"),
    [
        ({}, {"features": ("train/feat",)}, r"has no dataset 'train/feat'; it has .*train/feats \[150, 3, 4\] float32"),
        ({}, {"features": ("feats",)}, "dataset 'feats': say which split it is, as in train=feats or test=feats"),
        ({}, {"labels": ("train/y",)}, "split test has no labels; add --labels test=DATASET"),
        ({}, {"features": ()}, "is no export of featcache: say --features DATASET and --labels DATASET; it has test/feats"),
        ({"test/y": np.arange(21)}, {}, r"test/y is \[21\], the features have 20 rows"),
        ({"test/y": np.arange(20) - 1}, {}, "label -1; labels must be integers from 0"),
        ({"test/y": np.zeros(20)}, {}, "test/y is float64; labels must be integers"),
        ({"test/feats": np.zeros((20, 2, 4), "f4")}, {}, "train has 3 layers of width 4 in float32, test has 2 layers"),
        ({"test/feats": np.zeros((20, 3, 4), "i4")}, {}, "test/feats is int32; features must be float16, bfloat16, float32"),
        ({"test/feats": np.zeros((20, 3, 4))}, {}, "test/feats is float64; add --dtype float32 to convert it"),
        ({"test/feats": np.zeros((20, 1, 3, 4), "f4")}, {}, r"test/feats is \[20, 1, 3, 4\]; .*must be \[N, D\] or \[N, L, D\]"),
        ({}, {"tokens": ("cls", "ap")}, r"must be \[N, 2, D\] or \[N, L, 2, D\]"),
        ({"test/feats": np.full((20, 3, 4), np.nan, "f4")}, {}, "split test, row 0, layer 0: a value is NaN or infinite"),
        ({"test/feats": np.full((20, 3, 4), 1e5, "f4")}, {"dtype": "float16"}, "infinite as float16; .*--dtype float32"),
        ({}, {"class_names": ["a", "b"]}, "label 2, but there are 2 class names"),
    ],
)  # fmt: skip
def test_hdf5_that_cannot_be_imported(tmp_path, changes, choice, message):
    path = foreign_h5(tmp_path / "feats.h5", **changes)
    with pytest.raises((DatasetError, RequestError), match=message):
        import_h5(path, tmp_path / "root", ImportSelection(**BOTH | choice), dataset="d", model="m")
    assert not (tmp_path / "root").exists()


def folder_of(tmp_path, **files):
    for name, values in ({"layer_0": np.zeros((4, 3), "f4"), "labels": np.zeros(4, int)} | files).items():
        if values is not None:
            path = tmp_path / "feats" / "train" / (name if "." in name else f"{name}.npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(values) if isinstance(values, bytes) else np.save(path, values)
    return tmp_path / "feats"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"layer_1": np.zeros((5, 3), "f4")}, r"layer_1.npy is \[5, 3\], .*layer_0.npy is \[4, 3\]: all layers"),
        ({"layer_1": np.zeros((4, 3), "f2")}, "layer_1.npy is float16, .*layer_0.npy is float32: all layers must have one type"),
        ({"layer_1": np.array([{}], object)}, "layer_1.npy cannot be read as an array .*Python objects"),
        ({"layer_1": b"junk"}, "layer_1.npy cannot be read as an array"),
        ({"layer_1.pt": b"junk"}, "layer_1.pt cannot be read as a tensor"),
        ({"layer_00": np.zeros((4, 3), "f4")}, "layer_0.npy and layer_00.npy are the same layer|layer_00.npy and layer_0.npy"),
        ({"labels": None}, "train has no labels; there must be a file such as labels.npy"),
        ({"layer_0": None}, "train has no layers; they must be files such as layer_00.npy"),
        ({"sample_ids": np.array(["a"])}, "1 sample ids, the features have 4 rows"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_imported(tmp_path, files, message):
    with pytest.raises((DatasetError, RequestError), match=message):
        import_folder(folder_of(tmp_path, **files), tmp_path / "root", dataset="d", model="m")
    assert not (tmp_path / "root").exists()


def test_a_tensor_file_may_hold_tensors_only(tmp_path):
    import torch

    folder = folder_of(tmp_path, layer_0=None)
    torch.save({"feats": torch.zeros(4, 3)}, folder / "train" / "layer_0.pt")
    with pytest.raises(DatasetError, match="must hold one tensor, it holds a dict with feats"):
        import_folder(folder, tmp_path / "root", dataset="d", model="m")
    torch.save(Path("x"), folder / "train" / "layer_0.pt")  # a pickle that would run code of another class
    with pytest.raises(DatasetError, match=r"layer_0.pt cannot be read as a tensor"):
        import_folder(folder, tmp_path / "root", dataset="d", model="m")


def test_not_hdf5_and_foreign_documents(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"junk")
    with pytest.raises(DatasetError, match=r"x.h5 cannot be read as HDF5"):
        import_h5(tmp_path / "x.h5", tmp_path / "root")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["featcache"] = [json.dumps({"format": "featcache-export", "version": 2})]
    with pytest.raises(CacheError, match="export version 2; this featcache reads version 1"):
        import_h5(tmp_path / "y.h5", tmp_path / "root")


def test_ids_are_padded_to_the_longest():
    assert selection.ids_as_bytes(["a", "bcd"]).tolist() == [[97, 0, 0], [98, 99, 100]]
    assert selection.ids_as_bytes(["", ""]).shape == (2, 1)
