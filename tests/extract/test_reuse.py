"""A dataset that grows: rows of earlier caches are taken over, and the result is that of a full run to the byte."""

import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.extraction.decoding import images as decoding
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.reuse import candidates, division
from featcache.extraction.reuse.content_records import ContentRecords, DigestTable
from featcache.extraction.run import extract
from featcache.extraction.sources import data_folders, file_states
from featcache.store.catalogue import scan
from featcache.store.checking.verify import verify
from featcache.store.errors import CacheNotFoundError, DatasetError, RequestError
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, flip
from support.datasets import encoded, write_tar

from .test_freshness import Told
from .tiny import timm_vit

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
BLOCK = 128


@pytest.fixture(autouse=True)
def records_of_its_own(monkeypatch, tmp_path):
    """Records go to the test's folder, and files count as settled as soon as they are written."""
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(file_states, "_SETTLED_NS", 0)


def write_images(folder: Path, names, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / "ab"[int(name) % 2] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def folder(tmp_path):
    """300 images of two classes, so that train has two blocks."""
    return write_images(
        tmp_path / "photos", [f"{number:04d}" for number in range(0, 600, 2)] + ["0001", "0003"]
    )


def grow(folder: Path) -> Path:
    """Add 24 images between the others, and remove three."""
    write_images(folder, [f"{number:04d}" for number in range(5, 53, 2)], seed=1)
    for name in ("0000", "0200", "0598"):
        (folder / "a" / f"{name}.png").unlink()
    return folder


def run(folder, root, *, kind="imagefolder", told=None, **options):
    request = ExtractRequest(
        "tiny", f"{kind}:{folder}", **{"workers": 0, "device": "cpu", "batch_size": 16, **options}
    )
    return extract(request, [root], backbone=timm_vit(), reporter=told or Told())


@pytest.fixture
def decoded(monkeypatch):
    """Ids of the images that are decoded for the backbone, in this process."""
    ids, load = [], decoding.BatchLoader._prepared_or_error

    def counted(self, split, row):
        ids.append(self._source.splits[split][row].id)
        return load(self, split, row)

    monkeypatch.setattr(decoding.BatchLoader, "_prepared_or_error", counted)
    return ids


def values(path: Path) -> dict[str, bytes]:
    """What must not depend on whether rows were taken over: the features, and the manifest."""
    files = all_files(path)
    return {
        name: data
        for name, data in files.items()
        if name.startswith("features.zarr") or name == "manifest.json"
    }


def same_as_a_full_run(result, folder, tmp_path, **options) -> None:
    full = run(folder, tmp_path / "full", reuse="none", **options)
    assert (full.key, full.reused) == (result.key, 0)
    assert values(result.path) == values(full.path)
    assert verify(result.path).damages == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_only_new_images_are_decoded_and_computed(tmp_path, folder, decoded, dtype):
    first = run(folder, tmp_path / "root", dtype=dtype)
    assert (first.samples, first.reused) == (302, 0)
    grow(folder)
    decoded.clear()
    told = Told()
    second = run(folder, tmp_path / "root", told=told, dtype=dtype)
    assert (second.samples, second.reused, second.cached) == (323, 299, False)
    assert second.key != first.key
    line = next(line for line in told.lines if line.startswith("reusing"))
    assert line == (
        f"reusing rows of {first.path}: 299 of 323 images lie in files that are unchanged since and are not decoded again"
    )
    new = {f"b/{number:04d}.png" for number in range(5, 53, 2)}
    # Beside the new ones, an image of each window whose others are all known.
    assert new <= set(decoded)
    assert len(decoded) < len(new) + 8
    reused = open_cache(second.path).provenance["reused"]
    assert [(entry["key"], entry["rows"]) for entry in reused] == [(first.key, 299)]
    same_as_a_full_run(second, folder, tmp_path, dtype=dtype)
    # The chain goes on: the records of the second run serve a third.
    write_images(folder, ["0601"], seed=2)
    decoded.clear()
    assert run(folder, tmp_path / "root", dtype=dtype).reused == 323
    assert "b/0601.png" in decoded
    assert len(decoded) < 8


def test_without_records_images_are_decoded_and_compared(tmp_path, folder, decoded, monkeypatch):
    first = run(folder, tmp_path / "root")
    moved = tmp_path / "moved"
    shutil.copytree(grow(folder), moved)
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "other"))
    decoded.clear()
    told = Told()
    second = run(moved, tmp_path / "root", told=told)
    assert (second.reused, len(decoded)) == (299, 323)
    assert f"reusing rows of {first.path}, which holds some of these images" in told.lines
    same_as_a_full_run(second, moved, tmp_path)


def test_worker_processes_and_small_windows_change_nothing(tmp_path, folder, monkeypatch):
    run(folder, tmp_path / "root")
    grow(folder)
    monkeypatch.setattr(division, "_MAX_BYTES", 1)  # windows of one batch
    second = run(folder, tmp_path / "root", workers=2)
    assert second.reused == 299
    same_as_a_full_run(second, folder, tmp_path)


def test_a_file_with_other_content_is_computed_even_with_its_old_size_and_time(tmp_path, folder, decoded):
    path, state = folder / "a" / "0100.png", (folder / "a" / "0100.png").stat()
    run(folder, tmp_path / "root")
    grow(folder)
    pixels = np.asarray(Image.open(path)).copy()
    for value in range(256):  # until the packed size is the same
        pixels[0, 0, 0] = value
        Image.fromarray(pixels).save(path)
        if (
            path.stat().st_size == state.st_size
            and value != np.asarray(Image.open(folder / "a" / "0102.png"))[0, 0, 0]
        ):
            break
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    decoded.clear()
    second = run(folder, tmp_path / "root")
    assert "a/0100.png" in decoded
    same_as_a_full_run(second, folder, tmp_path)


def test_changed_just_now_means_no_record(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(file_states, "_SETTLED_NS", 10**12)
    first = run(folder, tmp_path / "root")
    assert len(ContentRecords.load(first.key).images) == 0


def test_without_a_folder_for_records_there_are_none(tmp_path, folder, monkeypatch):
    def homeless():
        raise RequestError("there is no home folder")

    monkeypatch.delenv("FEATCACHE_DATA")
    monkeypatch.setattr(data_folders, "user_cache", homeless)
    first = run(folder, tmp_path / "root")
    assert not len(ContentRecords.load(first.key).images)
    assert run(grow(folder), tmp_path / "root").reused == 299


def test_a_record_that_is_wrong_is_found_out(tmp_path, folder):
    first = run(folder, tmp_path / "root")
    records = ContentRecords.load(first.key)
    assert len(records.images) == 302
    shutil.rmtree(tmp_path / "data")
    ContentRecords(records.fingerprints, np.roll(records.images, 1, 0)).keep(first.key)
    write_images(folder, ["0601"], seed=2)
    with pytest.raises(
        DatasetError, match=r"is not the one on record, although size, times and inode .* --reuse none"
    ):
        run(folder, tmp_path / "root")
    for path in (tmp_path / "data").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])  # damaged records are none
    assert run(folder, tmp_path / "root").reused == 302


@pytest.mark.parametrize("array", ["norm2", "final", "content_digest", "valid"])
def test_damaged_rows_are_computed(tmp_path, folder, array):
    first = run(folder, tmp_path / "root")
    grow(folder)
    flip(next((first.path / "features.zarr" / "train" / array).glob("c.0*")))
    told = Told()
    second = run(folder, tmp_path / "root", told=told)
    assert 0 < second.reused <= 299 - BLOCK + 3
    damaged = [line for line in told.lines if "do not have their digest" in line]
    assert len(damaged) == (array in ("norm2", "final"))
    same_as_a_full_run(second, folder, tmp_path)


def killed_at_commit(folder, root, commits: int) -> None:
    """Extract in a process that is killed when it has committed some blocks."""
    commit, count = CacheWriter.commit, [0]

    def counted(self, block):
        commit(self, block)
        count[0] += 1
        if count[0] == commits:
            os.kill(os.getpid(), signal.SIGKILL)

    CacheWriter.commit = counted
    run(folder, root)


def in_process(function, *arguments):
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_killed_and_resumed(tmp_path, folder, commits):
    run(folder, tmp_path / "root")
    grow(folder)
    process = in_process(killed_at_commit, folder, tmp_path / "root", commits)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    second = run(folder, tmp_path / "root")
    # Provenance counts the rows of the killed process too.
    assert [entry["rows"] for entry in open_cache(second.path).provenance["reused"]] == [299]
    same_as_a_full_run(second, folder, tmp_path)


def test_two_processes_at_once(tmp_path, folder):
    run(folder, tmp_path / "root")
    grow(folder)
    processes = [in_process(run, folder, tmp_path / "root") for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    second = run(folder, tmp_path / "root")
    assert second.cached
    assert [entry["rows"] for entry in open_cache(second.path).provenance["reused"]] == [299]
    same_as_a_full_run(second, folder, tmp_path)


def test_a_checkpoint_keeps_the_count(tmp_path, folder, monkeypatch):
    run(folder, tmp_path / "root")
    grow(folder)
    monkeypatch.setattr(division, "_MAX_BYTES", 1)
    monkeypatch.setattr("featcache.store.writing.writer.CHECKPOINT_S", 0.0)
    append, count = CacheWriter.commit, []

    def interrupted(self, block):
        if count:
            raise KeyboardInterrupt
        count.append(append(self, block))

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "commit", interrupted)
        with pytest.raises(BaseException, match=r"interrupted|"):
            run(folder, tmp_path / "root")
    second = run(folder, tmp_path / "root")
    assert [entry["rows"] for entry in open_cache(second.path).provenance["reused"]] == [299]
    same_as_a_full_run(second, folder, tmp_path)


def test_an_image_that_did_not_decode_is_tried_again(tmp_path, folder):
    broken = folder / "a" / "0100.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    first = run(folder, tmp_path / "root", on_error="skip")
    assert first.skipped == 1
    broken.write_bytes(whole)
    second = run(folder, tmp_path / "root")
    assert (second.reused, second.skipped) == (301, 0)
    same_as_a_full_run(second, folder, tmp_path)


def test_the_same_pixels_turned_another_way_are_another_image(tmp_path):
    folder = write_images(tmp_path / "photos", [f"{number:04d}" for number in range(8)])

    def turn(source, target, orientation):
        with Image.open(folder / source) as image:
            exif = image.getexif()
            exif[0x0112] = orientation
            image.load()
            image.save(folder / target, exif=exif)

    turn("a/0000.png", "a/0000.png", 3)
    first = run(folder, tmp_path / "root")
    assert open_cache(first.path).spec.backbone.upright
    turn("a/0000.png", "a/0008.png", 6)
    turn("a/0002.png", "a/0010.png", 6)
    turn("a/0000.png", "a/0012.png", 3)
    second = run(folder, tmp_path / "root")
    assert second.reused == 9
    same_as_a_full_run(second, folder, tmp_path)


def test_views_are_taken_over_too(tmp_path, folder):
    run(folder, tmp_path / "root", views="flip")
    grow(folder)
    second = run(folder, tmp_path / "root", views="flip")
    assert second.reused == 299
    same_as_a_full_run(second, folder, tmp_path, views="flip")


def test_int8_is_computed_and_a_named_cache_of_it_is_refused(tmp_path, folder):
    first = run(folder, tmp_path / "root", dtype="int8")
    grow(folder)
    with pytest.raises(RequestError, match="rows of int8 are encoded with scales of their own cache"):
        run(folder, tmp_path / "root", dtype="int8", reuse=str(first.path))
    assert run(folder, tmp_path / "root", dtype="int8").reused == 0


def test_caches_that_hold_less_or_other_features_are_no_help(tmp_path, folder):
    first = run(folder, tmp_path / "root", layers="0,1")
    grow(folder)
    for options in (
        {},
        {"dtype": "float32"},
        {"layers": "0,1", "tokens": "cls,ap,sd"},
        {"pixel_range": "0..255"},
    ):
        assert run(folder, tmp_path / "root", **options).reused == 0
        shutil.rmtree(next(entry.path for entry in scan([tmp_path / "root"]) if entry.key != first.key))
    assert run(folder, tmp_path / "root", layers="1").reused == 299


def test_a_cache_that_is_named(tmp_path, folder):
    first = run(folder, tmp_path / "root")
    grow(folder)
    elsewhere = [tmp_path / "new"]

    def refused(message, error=RequestError, **options):
        with pytest.raises(error, match=message) as caught:
            run(folder, elsewhere[0], **options)
        assert "\n" not in str(caught.value).partition("; there are")[0]
        assert list(scan(elsewhere)) == []

    refused("no cache under|no cache matches", CacheNotFoundError, reuse="0123456789ab")
    refused("cannot be reused: it differs in dtype$", reuse=str(first.path), dtype="float32")
    refused("cannot be reused: its split train lacks norm2_sd", reuse=str(first.path), tokens="cls,ap,sd")
    refused("read with another pixel range", reuse=str(first.path), pixel_range="0..255")
    second = run(folder, elsewhere[0], reuse=str(first.path))
    assert second.reused == 299
    process = in_process(killed_at_commit, folder, tmp_path / "third", 1)
    process.join()
    (unfinished,) = scan([tmp_path / "third"])
    write_images(folder, ["0601"], seed=2)
    with pytest.raises(RequestError, match="cannot be reused: it is not complete"):
        run(folder, tmp_path / "fourth", reuse=str(unfinished.path))


def test_many_caches_are_not_all_looked_into(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(candidates, "MAX_CACHES", 1)
    first = run(folder, tmp_path / "root")
    other = write_images(tmp_path / "other", ["0001", "0003", "0002", "0004"], seed=9)
    run(other, tmp_path / "root")
    grow(folder)
    told = Told()
    second = run(folder, tmp_path / "root", told=told)  # that of the same name comes first
    assert second.reused == 299
    assert (
        "note: rows are looked for in 1 of 2 caches of this backbone; name another with --reuse CACHE"
        in told.lines
    )
    assert open_cache(second.path).provenance["reused"][0]["key"] == first.key


def test_shards_that_are_unchanged_are_not_decoded(tmp_path, decoded):
    def shard(number):
        rng = np.random.default_rng(number)
        images = [encoded(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(20)]
        members = [
            m
            for row, data in enumerate(images)
            for m in ((f"{row}.png", data), (f"{row}.cls", b"%d" % (row % 2)))
        ]
        write_tar(tmp_path / "shards" / f"{number:03d}.tar", members)

    shard(0)
    run(tmp_path / "shards", tmp_path / "root", kind="wds")
    shard(1)
    decoded.clear()
    second = run(tmp_path / "shards", tmp_path / "root", kind="wds")
    assert second.reused == 20
    assert len(decoded) < 30  # the 20 of the new shard, and one of each window
    same_as_a_full_run(second, tmp_path / "shards", tmp_path, kind="wds")


def test_a_table_of_digests_finds_the_first_of_equal_ones():
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (50, 16), np.uint8)
    digests[::7, 12:] = 0  # zeros at the end are no end of text
    digests[30] = digests[4]
    table = DigestTable(digests)
    wanted = np.concatenate([digests[[30, 49, 7]], rng.integers(0, 256, (2, 16), np.uint8)])
    assert table.find(wanted).tolist() == [4, 49, 7, -1, -1]
    assert DigestTable(digests[:0]).find(wanted).tolist() == [-1] * 5
    assert table.find(wanted[:0]).tolist() == []


def test_splits_that_lack_different_layers_are_computed(tmp_path, folder):
    run(folder, tmp_path / "root")
    grow(folder)
    assert run(folder, tmp_path / "root", layers="0,1", splits="train").reused > 0
    run(folder, tmp_path / "root", layers="0,2", splits="test")
    told = Told()
    last = run(folder, tmp_path / "root", told=told)
    assert any("splits lack different features" in text for text in told.lines)
    same_as_a_full_run(last, folder, tmp_path)
