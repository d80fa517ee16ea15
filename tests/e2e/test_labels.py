"""Labels that are attached to a cache later: the features are those of the cache, and only the labels are new."""

import errno
import os
import signal
from multiprocessing import get_context

import numpy as np
import pytest

import featcache
from featcache.store.catalogue import scan
from featcache.store.checking.verify import verify
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, cache_folder, make_content, make_plan, write_cache


@pytest.fixture
def unlabeled(tmp_path):
    """A cache of 300 and 90 samples without labels."""
    plan = make_plan(target_kind="none")
    return write_cache(cache_folder(tmp_path / "root", plan), plan, make_content(plan))


def ids_of(cache):
    return [sample_id for split in cache.values() for sample_id in split.sample_ids()]


def write_table(path, ids, header, values):
    lines = [
        ",".join(header),
        *(f"{sample_id},{value}" for sample_id, value in zip(ids, values, strict=True)),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def table(tmp_path, unlabeled):
    """Classes of all samples, in an order of its own."""
    ids = ids_of(unlabeled)[::-1]
    return write_table(
        tmp_path / "labels.csv", ids, ("id", "kind"), ["cat" if len(i) % 2 else "dog" for i in ids]
    )


def label(cache, table, tmp_path, **options):
    return featcache.label(cache.directory, table, root=tmp_path / "root", progress=False, **options)


def test_features_are_linked_and_labels_written(cli, tmp_path, unlabeled, table):
    before = all_files(unlabeled.directory)
    made = cli("label", unlabeled.key, table, "--root", tmp_path / "root")
    assert made.status == 0, made.err
    assert made.out.startswith("390 samples, 2 names (single-label)\ncache: ")
    cache = featcache.open(made.out.split("cache: ")[1].strip())
    assert cache.key != unlabeled.key
    assert cache.inventory.class_names == ("cat", "dog")
    for name, split in cache.items():
        old = unlabeled[name]
        assert split.sample_ids() == old.sample_ids()
        assert split.labels().tolist() == [1 - len(sample_id) % 2 for sample_id in split.sample_ids()]
        assert np.array_equal(split.load("every", "cls"), old.load("every", "cls"), equal_nan=True)
    path = "features.zarr/train/norm2/c.0.0.0.0"
    assert (cache.directory / path).stat().st_ino == (unlabeled.directory / path).stat().st_ino
    assert verify(cache.directory).damages == []
    assert cache.manifest.spec_document()["format_version"] == 2
    assert all_files(unlabeled.directory) == before
    labels = cache.provenance["labels"]
    assert (labels["from"]["key"], labels["table"], labels["columns"]) == (
        unlabeled.key,
        "labels.csv",
        ["kind"],
    )
    assert cli("info", "--root", tmp_path / "root").out.startswith(str(cache.directory))  # completed last
    assert "| cat | " in (cache.directory / "README.md").read_text()
    assert cli("probe", "--cache", cache.directory, "--head", "ridge", "--layers", "last").status == 0
    again = cli("label", unlabeled.directory, table, "--root", tmp_path / "root")
    assert again.out == f"already cached: {cache.directory}\n"
    # Removing one of the two leaves the other whole.
    assert cli("rm", unlabeled.directory, "--yes").status == 0
    assert verify(cache.directory).damages == []


@pytest.mark.parametrize(
    ("header", "values", "options", "kind", "names"),
    [
        (("id", "a", "b"), ["1,0"], {}, "multi-label", ("a", "b")),
        (("path", "size [mm]"), ["1.5"], {"target": "regression"}, "regression", ("size",)),
        (("key", "x", "y"), ["3,q"], {"id_column": "key", "labels": "x"}, "single-label", ("3",)),
    ],
)
def test_targets_of_every_kind(tmp_path, unlabeled, header, values, options, kind, names):
    ids = ids_of(unlabeled)
    path = write_table(tmp_path / "t.csv", ids, header, values * len(ids))
    cache = label(unlabeled, path, tmp_path, **options)
    assert (cache.inventory.target_kind, cache.inventory.class_names) == (kind, names)
    assert verify(cache.directory).damages == []
    # Other labels of a labeled cache make another cache.
    path.write_text(path.read_text().replace("1.5", "2.5").replace("1,0", "0,1").replace("3,q", "4,q"))
    assert label(cache, path, tmp_path, **options).key not in (cache.key, unlabeled.key)


def test_links_that_cannot_be_made_are_copies(cli, tmp_path, unlabeled, table, monkeypatch):
    link = os.link

    def link_claims_alone(source, target, **options):
        if "features.zarr" in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", link_claims_alone)
    made = cli("label", unlabeled.directory, table, "--root", tmp_path / "other")
    assert made.status == 0, made.err
    assert "files copied (no hard links here)" in made.out
    cache = featcache.open(made.out.split("cache: ")[1].strip())
    assert verify(cache.directory).damages == []
    path = next((unlabeled.directory / "features.zarr/train/norm2").glob("c.1.2*"))
    path.write_bytes(path.read_bytes()[::-1])
    table.write_text(table.read_text().replace("cat", "bird"))
    refused = cli("label", unlabeled.directory, table, "--root", tmp_path / "other")
    assert refused.status == 1
    assert "content does not match its SHA-256" in refused.err


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda text: text + "nobody,cat\n",
            DatasetError,
            "1 ids are none of the cache's (nobody); ids of the cache are such as",
        ),
        (
            lambda text: text.replace("train-7,", "train-8,"),
            DatasetError,
            "1 ids appear more than once: train-8",
        ),
        (
            lambda text: text.replace("train-7,cat\n", ""),
            DatasetError,
            "1 samples of the cache have no row (train-7)",
        ),
        (
            lambda text: text.replace("train-7,cat", "train-7,"),
            DatasetError,
            "labels are missing in 1 rows (row ",
        ),
        (lambda text: text.replace("train-7,", ","), DatasetError, "has no id"),
        (
            lambda text: text.replace("id,kind", "name,kind"),
            RequestError,
            "has no column id, sample_id, path",
        ),
        (
            lambda text: "id\n" + "\n".join(line.split(",")[0] for line in text.split()[1:]),
            RequestError,
            "no label column beside id",
        ),
        (lambda text: "id,kind\n", DatasetError, "has no rows below its header"),
        (lambda text: "", DatasetError, "is empty"),
    ],
)
def test_tables_that_are_refused_leave_nothing(cli, tmp_path, unlabeled, table, change, error, message):
    table.write_text(change(table.read_text()))
    with pytest.raises(error) as caught:
        label(unlabeled, table, tmp_path)
    assert message in str(caught.value)
    refused = cli("label", unlabeled.directory, table, "--root", tmp_path / "root")
    assert (refused.status, refused.out) == (error.exit_status, "")
    assert len(refused.err.splitlines()) == 1
    assert [entry.key for entry in scan([tmp_path / "root"])] == [unlabeled.key]


def test_columns_and_files_that_are_not_there(tmp_path, unlabeled, table):
    for options, error, message in (
        ({"id_column": "x"}, UnknownNameError, "unknown id column 'x'"),
        ({"labels": "x"}, UnknownNameError, "unknown label column 'x'"),
        ({"target": "none"}, UnknownNameError, "unknown kind of target 'none'"),
        (
            {"target": "regression"},
            DatasetError,
            "in column 'kind', which is no number; name the label columns as in --label a,b",
        ),
    ):
        with pytest.raises(error, match=message):
            label(unlabeled, table, tmp_path, **options)
    with pytest.raises(RequestError, match=r"table .*nope.csv does not exist"):
        label(unlabeled, tmp_path / "nope.csv", tmp_path)


def killed_at_commit(cache, table, tmp_path):
    commit, count = CacheWriter.commit, [0]

    def counted(self, block):
        commit(self, block)
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    CacheWriter.commit = counted
    label(cache, table, tmp_path)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_killed_and_run_again(tmp_path, unlabeled, table):
    process = get_context("fork").Process(target=killed_at_commit, args=(unlabeled, table, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [entry.complete for entry in scan([tmp_path / "root"])].count(False) == 1
    cache = label(unlabeled, table, tmp_path)
    assert verify(cache.directory).damages == []
    assert not (cache.directory / "journal").exists()
