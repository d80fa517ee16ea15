"""WebDataset shards: the traps of the Hub's repositories, and every way in which samples are not whole."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from featcache.extraction.sources import http_files, resolve_source, shard_index
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.targets import MULTI_LABEL, REGRESSION
from support.dataset_hub import Repositories, hub_server
from support.datasets import CLASSES, encoded, labels, make_shards, pixels, shard_members, write_tar


@pytest.fixture(autouse=True)
def data_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))


def open_wds(place: object, **options):
    return resolve_source(f"wds:{place}", DatasetOptions(**options))


def npy(values) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


IMAGE = encoded(pixels("train")[0])


def test_unpadded_numbers_are_in_order_and_jpg_png_webp_are_taken(tmp_path):
    for number in range(12):
        form = ("webp", "png", "jpeg")[number % 3]
        write_tar(tmp_path / "train" / f"{number}.tar", shard_members("train", [number % 10], form))
    write_tar(tmp_path / "test" / "0.tar", shard_members("test", range(5)))
    source = open_wds(tmp_path)
    assert [sample.id.split("/")[1] for sample in source.splits["train"]] == [str(n) for n in range(12)]
    for row in range(12):
        seen = np.asarray(source.image("train", row).convert("RGB")).astype(int)
        assert abs(seen - pixels("train")[row % 10]).max() < 12  # JPEG


def test_classnames_may_lack_a_line_and_classes_may_be_in_one_split_alone(tmp_path):
    make_shards(tmp_path)
    (tmp_path / "classnames.txt").write_text("ant\nbee\n")
    assert open_wds(tmp_path).class_names == ("ant", "bee", "2")
    write_tar(tmp_path / "test" / "1.tar", [("s9.png", IMAGE), ("s9.cls", b"4")])
    source = open_wds(tmp_path)
    assert source.class_names == ("ant", "bee", "2", "3", "4")
    assert list(source.notes) == [
        f"{tmp_path.name}: 2 names for 5 classes; classes from 2 on are called by their numbers",
        f"split test of {tmp_path.name}: classes that train lacks: 4",
        f"{tmp_path.name}: 1 of 5 classes have no sample (3)",
    ]


def test_a_set_without_train_is_its_test_split_or_is_split_anew(tmp_path):
    folder = make_shards(tmp_path / "only", {"test": 2})
    source = open_wds(folder)
    assert {split: len(rows) for split, rows in source.splits.items()} == {"test": 5}
    assert list(source.notes) == ["only has no train split: test alone (--resplit splits anew)"]
    write_tar(folder / "test" / "0.tar", shard_members("train", range(10)))
    anew = open_wds(folder, resplit=True)
    assert sorted(anew.splits) == ["test", "train"]
    assert sum(map(len, anew.splits.values())) == 10 + 2
    alone = make_shards(tmp_path / "alone", {"train": 3})
    assert {split: len(rows) for split, rows in open_wds(alone).splits.items()} == {"train": 7, "test": 3}


def test_a_shard_that_nshards_counts_is_missed(tmp_path):
    make_shards(tmp_path)
    (tmp_path / "train" / "1.tar").unlink()
    with pytest.raises(DatasetError, match=r"/train: 1 shards do not exist: 1\.tar$"):
        open_wds(tmp_path)
    (tmp_path / "train" / "nshards.txt").write_text("three")
    with pytest.raises(DatasetError, match=r"nshards\.txt must be a number of shards, got 'three'"):
        open_wds(tmp_path)


def test_npy_targets_are_several_classes_or_real_values(tmp_path):
    vectors = np.eye(3, dtype=np.int64)[[0, 1, 2, 0]]
    vectors[3] = 0, 1, 1
    for folder, values in (("several", vectors), ("real", vectors * 0.5)):
        for split in ("train", "test"):
            members = [m for i, v in enumerate(values) for m in ((f"s{i}.png", IMAGE), (f"s{i}.npy", npy(v)))]
            write_tar(tmp_path / folder / split / "0.tar", members)
        (tmp_path / folder / "classnames.txt").write_text("\n".join(CLASSES))
    several = open_wds(tmp_path / "several")
    assert (several.targets.type, several.class_names) == (MULTI_LABEL, CLASSES)
    np.testing.assert_array_equal(several.splits["train"].labels, vectors)
    assert several.identity["targets"] == MULTI_LABEL
    real = open_wds(tmp_path / "real")
    assert (real.targets.type, real.splits["train"].labels.dtype) == (REGRESSION, np.float32)
    ages = write_tar(tmp_path / "ages" / "0.tar", shard_members("train", range(10))).parent
    assert open_wds(ages, target=REGRESSION).splits["test"].labels.shape == (2, 1)
    with pytest.raises(
        RequestError, match="ages has single-label targets, not multi-label; leave --target out"
    ):
        open_wds(ages, target=MULTI_LABEL)
    with pytest.raises(DatasetError, match="other values than 0 and 1, so they are not multi-label"):
        open_wds(tmp_path / "real", target=MULTI_LABEL)


WHOLE = [("a.png", IMAGE), ("a.cls", b"0")]
PROBLEMS = {
    "no label": ([*WHOLE, ("b.png", IMAGE)], "1 samples are not whole: b has no label (.cls or .npy)"),
    "no image": (
        [("a.cls", b"0"), ("b.cls", b"1")],
        "2 samples are not whole: a has no image; b has no image",
    ),
    "two images": ([*WHOLE, ("a.jpg", IMAGE)], "1 samples are not whole: a has 2 images"),
    "many": (
        [(f"{i}.cls", b"0") for i in range(14)],
        "14 samples are not whole: " + "; ".join(f"{i} has no image" for i in range(10)) + " and 4 more",
    ),
    "twice": ([*WHOLE, *WHOLE], "sample a has two members .png; keys must be unique"),
    "text": ([("a.png", IMAGE), ("a.cls", b"cat")], "a.cls must be an integer from 0, got 'cat'"),
    "negative": ([("a.png", IMAGE), ("a.cls", b"-1")], "a.cls must be an integer from 0, got '-1'"),
    "half": ([("a.png", IMAGE), ("a.cls", b"1.5")], "a.cls must be an integer from 0, got '1.5'"),
    "empty": ([("a.png", IMAGE), ("a.cls", b"")], "a.cls must be an integer from 0, got ''"),
    "no array": ([("a.png", IMAGE), ("a.npy", b"xx")], "a.npy is no array of numbers"),
    "pickle": (
        [("a.png", IMAGE), ("a.npy", npy(np.array([None], object)))],
        "a.npy is object; labels must be numbers",
    ),
    "unlike": (
        [*WHOLE[:1], ("a.npy", npy(np.zeros(2))), ("b.png", IMAGE), ("b.npy", npy(np.zeros(3)))],
        "labels are arrays of 2 to 3 values; they must agree",
    ),
    "not finite": (
        [("a.png", IMAGE), ("a.npy", npy(np.array([0.5, np.inf])))],
        "bad: row 0 has inf for '1', must be a finite number",
    ),
    "no utf-8": (
        [("a.png", IMAGE), ("\udcff.cls", b"0")],
        "the name '\\udcff.cls' of a member is not valid UTF-8; rename it",
    ),
    "no json": ([*WHOLE, ("a.json", b"[1]")], "a.json is no JSON object"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_samples_that_are_not_whole(tmp_path, name):
    members, message = PROBLEMS[name]
    path = write_tar(tmp_path / "bad" / "0.tar", members)
    with pytest.raises(DatasetError) as caught:
        open_wds(tmp_path / "bad")
    assert message in str(caught.value)
    assert str(path) in str(caught.value) or name in ("unlike", "not finite")


def test_other_members_are_passed_over(tmp_path):
    members = [
        *shard_members("train", range(10)),
        ("s0000001.txt", b"a caption"),
        ("__meta__", b"?"),
        (".x", b"?"),
    ]
    write_tar(tmp_path / "photos" / "0.tar", members)
    source = open_wds(tmp_path / "photos", resplit=True)
    assert sum(map(len, source.splits.values())) == 10


def test_groups_come_from_json(tmp_path):
    members = []
    for row in range(10):
        record = json.dumps({"patient": f"p{row // 2}", "age": 40}).encode()
        members += [
            (f"s{row}.png", encoded(pixels("train")[row])),
            (f"s{row}.cls", b"%d" % (row % 2)),
            (f"s{row}.json", record),
        ]
    write_tar(tmp_path / "scans" / "0.tar", members)
    source = open_wds(tmp_path / "scans", group_by="patient")
    rows = {split: {int(s.id.rpartition("s")[2]) // 2 for s in part} for split, part in source.splits.items()}
    assert not rows["train"] & rows["test"]
    assert len(rows["test"]) == 1
    with pytest.raises(UnknownNameError, match="unknown column 'patent'; did you mean patient"):
        open_wds(tmp_path / "scans", group_by="patent")


def test_patterns(tmp_path):
    for number in range(3):
        write_tar(
            tmp_path / f"photos-{number:03d}.tar", shard_members("train", range(3 * number, 3 * number + 3))
        )
    spelt = open_wds(f"{tmp_path}/photos-{{000..002}}.tar")
    globbed = open_wds(f"{tmp_path}/photos-*.tar")
    assert spelt.identity == globbed.identity
    assert (spelt.name, sum(map(len, spelt.splits.values()))) == ("photos", 9)
    with pytest.raises(DatasetError, match=r"2 shards do not exist: .*photos-003\.tar, .*photos-004\.tar$"):
        open_wds(f"{tmp_path}/photos-{{000..004}}.tar")
    with pytest.raises(RequestError, match=r"\{5\.\.1\} in .* is no range; write such as \{000\.\.010\}"):
        open_wds(f"{tmp_path}/photos-{{5..1}}.tar")
    with pytest.raises(RequestError, match="wds needs an argument: wds:DIR"):
        open_wds("")


def test_addresses_are_fetched_once_and_go_on(tmp_path):
    hub = Repositories()
    hub.add("datasets/x", make_shards(tmp_path / "source"))
    hub.files["x"] = hub.files.pop("datasets/x")
    hub.broken_off["train/1.tar"] = 1000
    with hub_server(hub) as address:
        pattern = f"{address}/datasets/x/resolve/main/train/{{0..2}}.tar"
        source = open_wds(pattern)  # which resumes by itself where an answer broke off
        assert ("GET", "/datasets/x/resolve/main/train/1.tar", "bytes=1000-") in hub.asked
        with pytest.raises(
            DatasetError, match=r"/train/3\.tar could not be fetched: not there \(status 404\)$"
        ):
            open_wds(f"{address}/datasets/x/resolve/main/train/{{0..3}}.tar")
    # Nobody answers any more.
    again = open_wds(pattern)
    assert again.identity == source.identity
    assert sum(map(len, again.splits.values())) == 10
    assert http_files.is_address(pattern)


def test_the_index_of_a_large_shard_is_kept_and_holds_for_that_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "KEEP_FROM_BYTES", 0)
    folder = make_shards(tmp_path / "shards")
    first = open_wds(folder)
    kept = list((tmp_path / "data" / ".index").iterdir())
    assert len(kept) == 5
    with monkeypatch.context() as patch:
        patch.setattr("featcache.extraction.sources.webdataset.index_tar", None)
        again = open_wds(folder)
        assert again.identity == first.identity
        np.testing.assert_array_equal(again.image("test", 4), first.image("test", 4))
    # A shard that was written again, and an index that is damaged, are read anew.
    write_tar(folder / "test" / "0.tar", shard_members("test", range(2)))
    os.utime(folder / "test" / "0.tar", (1, 1))
    assert len(open_wds(folder).splits["test"]) == 2 + 2
    for path in kept:
        path.write_bytes(b"damaged")
    assert len(open_wds(folder).splits["test"]) == 2 + 2


def test_sizes_that_differ_from_the_table_are_reported(tmp_path):
    source = resolve_source("flowers", DatasetOptions(data=make_shards(tmp_path / "flowers")))
    assert [note.partition(",")[0] for note in source.notes] == [
        "flowers has 10 train images",
        "flowers has 5 test images",
        "flowers has 3 classes",
        f"of which commit the copy in {tmp_path / 'flowers'} is",
    ]
    assert source.splits["train"].labels.tolist() == labels("train").tolist()
    assert "Nilsback" in (source.citation.text or "")


def test_a_shard_that_is_gone_or_shorter_when_it_is_read(tmp_path):
    source = open_wds(make_shards(tmp_path / "shards"))
    path = Path(tmp_path / "shards" / "train" / "2.tar")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"2\.tar has changed since it was indexed; start again"):
        source.image("train", 9)
    path.with_name("0.tar").unlink()
    with pytest.raises(DatasetError, match=r"shard .*0\.tar cannot be read \(No such file"):
        source.image("train", 0)


def test_labels_that_are_ids_are_numbered_anew(tmp_path):
    ids = [2**40, 7, 10**7, 7]
    for split in ("train", "test"):
        members = [
            (f"{n}{end}", IMAGE if end == ".png" else b"%d" % ids[n])
            for n in range(4)
            for end in (".png", ".cls")
        ]
        write_tar(tmp_path / split / "0.tar", members)
    source = open_wds(tmp_path)
    assert source.class_names == ("7", "10000000", str(2**40))
    assert [sample.label for sample in source.splits["train"]] == [2, 0, 1, 0]
    assert any("labels go up to 1099511627776, and 3 occur" in note for note in source.notes)
    (tmp_path / "classnames.txt").write_text("ant\nbee\n")
    with pytest.raises(DatasetError, match="is it the index of a class"):
        open_wds(tmp_path)
