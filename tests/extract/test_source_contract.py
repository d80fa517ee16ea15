"""One contract for all sources: length known, random access, stable ids, the same order every time, picklable, errors that
name the sample. Every source gets the same images, so the oracle is one too."""

import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import image_batches
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.sequences import python_dataset
from featcache.store.errors import DatasetError
from support.datasets import (
    CLASSES,
    SIZES,
    Items,
    labels,
    make_csv,
    make_folder,
    make_idx,
    make_npz,
    make_parquet,
    make_pcam,
    make_shards,
    pixels,
    write_tar,
)


@dataclass(frozen=True)
class Form:
    """How one kind of source is made and opened."""

    make: Callable[[Path], object]
    name: str = ""
    """The dataset, with ``{}`` for its folder."""
    grey: bool = False
    classes: tuple[str, ...] = CLASSES
    """Names of the classes, as far as it knows them."""
    data: bool = False
    """Whether the folder is given by ``--data``."""
    options: dict = field(default_factory=dict)

    def open(self, folder: Path) -> Source:
        options = DatasetOptions(**self.options, data=folder if self.data else None)
        return resolve_source(self.name.format(folder), options)


class Python(Form):
    def open(self, folder: Path) -> Source:
        return python_dataset({split: Items(split) for split in SIZES}, name="mine", class_names=CLASSES)


def make_patterns(folder: Path) -> None:
    make_shards(folder)
    for split in SIZES:
        for path in (folder / split).glob("*.tar"):
            path.rename(folder / f"{split}-{int(path.stem):03d}.tar")


NUMBERS = ("0", "1", "2")
DIGITS = (
    "0 - zero",
    "1 - one",
    "2 - two",
    "3 - three",
    "4 - four",
    "5 - five",
    "6 - six",
    "7 - seven",
    "8 - eight",
    "9 - nine",
)
PCAM = "hdf5:{}/camelyon_{{split}}_x.h5"
FORMS = {
    "imagefolder": Form(make_folder, "imagefolder:{}"),
    "wds": Form(make_shards, "wds:{}"),
    "wds-pattern": Form(
        make_patterns,
        "wds:{0}/train-{{000..002}}.tar?test={0}/test-{{000..001}}.tar&classes={0}/classnames.txt",
    ),
    "alias": Form(make_shards, "flowers", data=True),
    "hdf5-contiguous": Form(make_pcam, PCAM, classes=NUMBERS),
    "hdf5-chunked": Form(
        lambda folder: make_pcam(folder, chunks=(4, 6, 6, 3), compression="gzip"), PCAM, classes=NUMBERS
    ),
    "hdf5-packed": Form(lambda folder: make_pcam(folder, packed=True), f"{PCAM}.gz", classes=NUMBERS),
    "idx": Form(make_idx, "idx:{}", grey=True, classes=NUMBERS),
    "idx-packed": Form(lambda folder: make_idx(folder, packed=True), "idx:{}", grey=True, classes=NUMBERS),
    "npz": Form(lambda folder: make_npz(folder / "medical.npz"), "npz:{}/medical.npz", classes=NUMBERS),
    "csv": Form(lambda folder: make_csv(folder / "table.csv"), "csv:{}/table.csv"),
    "hf": Form(make_parquet, "hf:someone/insects", data=True),
    "torchvision": Form(
        lambda folder: make_idx(folder / "MNIST" / "raw"),
        "torchvision:MNIST",
        grey=True,
        classes=DIGITS,
        data=True,
    ),
    "python": Python(lambda folder: None),
}


@pytest.fixture(autouse=True)
def data_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(params=FORMS)
def form(request) -> Form:
    return FORMS[request.param]


@pytest.fixture
def folder(form, tmp_path) -> Path:
    folder = tmp_path / "insects"
    folder.mkdir()
    form.make(folder)
    return folder


def ids(source: Source, split: str) -> list[str]:
    return [sample.id for sample in source.splits[split]]


def expected(form: Form, split: str) -> np.ndarray:
    images = pixels(split)
    return np.repeat(images[..., 1:2], 3, 3) if form.grey else images


def test_length_labels_and_names_are_known_up_front(form, folder):
    source = form.open(folder)
    assert {split: len(samples) for split, samples in source.splits.items()} == SIZES
    for split in SIZES:
        assert [sample.label for sample in source.splits[split]] == labels(split).tolist()
    assert source.class_names == form.classes
    assert source.targets.type == "single-label"
    unique = [one for split in SIZES for one in ids(source, split)]
    assert len(set(unique)) == len(unique)


def test_any_row_is_read_in_any_order(form, folder):
    source = form.open(folder)
    spots = [(split, row) for split in SIZES for row in range(SIZES[split])]
    random.Random(0).shuffle(spots)
    for split, row in spots:
        np.testing.assert_array_equal(source.image(split, row).convert("RGB"), expected(form, split)[row])


def test_ids_order_and_identity_are_the_same_every_time_and_everywhere(form, folder, tmp_path):
    first, copy = form.open(folder), tmp_path / "elsewhere" / "insects"
    shutil.copytree(folder, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    second = form.open(copy)
    assert second.identity == first.identity
    assert [ids(second, split) for split in SIZES] == [ids(first, split) for split in SIZES]
    assert str(tmp_path) not in repr(first.identity)
    assert first.name == second.name


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_read_the_same(form, folder, workers):
    source = form.open(folder)
    source.image("train", 0)  # what was opened before must not be shared
    rows = [Rows("train", 0, 4), Rows("train", 4, 10), Rows("test", 0, 5)]
    batches = list(image_batches(source, np_tensor, rows, workers, 6))
    for wanted, batch in zip(rows, batches, strict=True):
        assert not batch.failures
        images = expected(form, wanted.split)[wanted.start : wanted.stop]
        np.testing.assert_array_equal(batch.images.numpy(), images)


def test_a_pickled_copy_reads_the_same(form, folder):
    source = form.open(folder)
    source.prepare("train", [0, 1, 2])
    source.image("train", 1)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.image("train", 7).convert("RGB"), expected(form, "train")[7])
    assert copy.identity == source.identity


def test_a_limit_and_a_new_split_are_other_identities(form, folder):
    options = [{}, {"limit": 4}, {"resplit": True}, {"resplit": True, "split_seed": 1}]
    if isinstance(form, Python):
        pytest.skip("its options are the caller's")
    sources = [Form(form.make, form.name, data=form.data, options=more).open(folder) for more in options]
    identities = [source.identity for source in sources]
    assert all(identities.count(identity) == 1 for identity in identities)
    assert [len(part) for part in sources[1].splits.values()] == [4, 4]
    whole = {one for split in SIZES for one in ids(sources[0], split)}
    for source in sources[2:]:
        train, test = ids(source, "train"), ids(source, "test")
        assert {*train} | {*test} == whole
        assert not {*train} & {*test}


def np_tensor(image):
    import torch

    return torch.from_numpy(np.array(image))


# What does not decode.


def damage_folder(folder: Path) -> str:
    (folder / "train" / "ant" / "02.png").write_bytes(b"no image")
    return r"insects/train/ant/02\.png does not decode"


def damage_shards(folder: Path) -> str:
    write_tar(folder / "train" / "0.tar", [("s2.png", b"no image"), ("s2.cls", b"0")])
    return r"image train/0/s2 in .*/train/0\.tar does not decode \(not an image\)"


@pytest.mark.parametrize(("form", "damage"), [("imagefolder", damage_folder), ("wds", damage_shards)])
def test_what_does_not_decode_is_named(form, damage, tmp_path):
    folder = tmp_path / "insects"
    FORMS[form].make(folder)
    message = damage(folder)
    source = FORMS[form].open(folder)
    row = next(row for row, sample in enumerate(source.splits["train"]) if "2" in sample.id)
    with pytest.raises(DatasetError, match=message):
        source.image("train", 0 if form == "wds" else row)


def test_no_source_imports_torch_to_be_opened(tmp_path):
    """Only `torchvision:` has to; an extract whose answer is cached must not wait for it."""
    import subprocess

    make_shards(tmp_path / "shards")
    make_csv(tmp_path / "table.csv")
    code = (
        "import sys; from featcache.extraction.sources import resolve_source as r; "
        f"r('wds:{tmp_path}/shards').identity; r('csv:{tmp_path}/table.csv').identity; "
        "print(sorted({'torch', 'PIL', 'pyarrow', 'h5py', 'huggingface_hub'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
