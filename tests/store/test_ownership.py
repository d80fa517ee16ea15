"""What gc and rm may delete: what is shown to be a cache of ours, for a reason that was checked, and nothing else."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from featcache.store.catalogue import removal, select
from featcache.store.catalogue.entries import unreadable
from featcache.store.catalogue.ownership import foreign_files, read_proof
from featcache.store.catalogue.removal import refuse_linked, remove_cache
from featcache.store.catalogue.stale_files import find_stale_files
from featcache.store.errors import CacheBusyError, CacheError, RequestError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.partial_copy import PartialCopy
from featcache.store.progress import Silent
from featcache.store.writing.claims import Claims
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, cache_folder, flip, make_content, make_plan, write_cache
from support.mounts import mounted
from support.small import SMALL, make, no_waiting_for_the_disk  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def start(root, dataset="made", **changes):
    plan = make_plan(SMALL, **changes)
    with CacheWriter(cache_folder(root, plan, dataset), plan) as writer:
        assert writer.claim() is not None
        return writer.directory


def age(folder):
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1, 1), follow_symlinks=False)


def collect(root, days=0.0):
    """Remove all that gc finds; returns what it was."""
    found = find_stale_files(root, days)
    for item in found:
        item.remove()
    return [(item.kind, item.path) for item in found]


def test_a_cache_under_two_names_is_one(tmp_path):
    folder = make(tmp_path)
    (tmp_path / "alias").symlink_to("made")
    (tmp_path / "made" / f"other-{folder.name[-12:]}").symlink_to(folder.name)
    before = all_files(folder)
    assert collect(tmp_path) == []
    assert all_files(folder) == before
    assert select([tmp_path], folder.name[-12:]).key == folder.name[-12:]


@pytest.mark.parametrize("what", ["dataset", "cache", "features"])
def test_a_bind_mount_is_no_copy(tmp_path, what):
    folder = make(tmp_path)
    before = all_files(folder)
    other = tmp_path / "mounted" / folder.name
    shutil.copytree(folder, other)
    source, place = {
        "dataset": (folder.parent, other.parent),
        "cache": (folder, other),
        "features": (folder / "features.zarr", other / "features.zarr"),
    }[what]
    with mounted(place, "--bind", source):
        assert collect(tmp_path) == []
        assert all_files(folder) == before


def strangers(root):
    """What others may keep in a folder that is somebody's root as well; returns it as files with content."""
    texts = (
        "downloads/imagenet.tar.partial",
        "thesis/chapter.partial/text.tex",
        "thesis/run-0123456789ab/journal/monday.txt",
        "thesis/run-0123456789ab/results.csv",
        "thesis/log-0123456789ab/journal/setup.claim",
        "thesis/.removing-old-0123456789ab.01234567/photo.jpg",
        "thesis/web-0123456789ab/manifest.json",
        "thesis/web-0123456789ab/index.html.partial",
        "thesis/plan-0123456789ab/journal/plan.json",
    )
    for text in texts:
        (root / text).parent.mkdir(parents=True, exist_ok=True)
        (root / text).write_text("mine")
    age(root / "downloads")
    age(root / "thesis")
    return all_files(root)


def test_what_others_keep_in_a_root_stays(tmp_path):
    before = strangers(tmp_path)
    assert collect(tmp_path) == []
    assert all_files(tmp_path) == before


def test_a_cache_under_the_name_of_another_key_is_not_collected(tmp_path):
    folder = start(tmp_path)
    renamed = folder.rename(folder.with_name("tiny-0123456789ab"))
    age(renamed)
    assert collect(tmp_path) == []


PLACES = (
    "results/scores.csv",
    "notes.txt.partial",
    "features.zarr/extra/zarr.json",
    "features.zarr/train/norm2/notes.txt",
    "journal/monday.txt",
)


@pytest.mark.parametrize("place", PLACES)
def test_results_in_an_abandoned_cache_stay(tmp_path, place):
    folder = start(tmp_path)
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text("mine")
    age(folder)
    assert collect(tmp_path, 7.0) == [("incomplete", folder)]
    assert all_files(folder) == {place: b"mine"}
    assert collect(tmp_path) == []


@pytest.mark.parametrize("place", PLACES)
def test_rm_leaves_what_is_not_ours_and_says_so(tmp_path, place):
    folder = make(tmp_path)
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text("mine")
    (left,) = remove_cache(folder)
    assert (folder / place).is_relative_to(left)
    assert all_files(folder) == {place: b"mine"}


@pytest.mark.parametrize("place", PLACES)
def test_rm_that_is_killed_around_files_of_others_is_finished_by_gc(tmp_path, monkeypatch, place):
    folder = make(tmp_path)
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(removal, "remove_tree", kill)
        with pytest.raises(KeyboardInterrupt):
            remove_cache(folder)
    assert all_files(folder) == {place: b"mine"}
    ((kind, _),) = collect(tmp_path)
    assert kind == "removal"
    assert all_files(tmp_path) == {f"{folder.relative_to(tmp_path)}/{place}": b"mine"}


def kill(path):
    raise KeyboardInterrupt


def test_foreign_files_are_told_with_and_without_an_inventory(tmp_path):
    folder = make(tmp_path)
    assert foreign_files(folder, read_proof(folder).inventory) == foreign_files(folder, None) == []
    begun = start(tmp_path, name="begun")
    (begun / "features.zarr/train/norm2/c.0.0.0.0.pull.partial").write_bytes(b"")
    assert foreign_files(begun, read_proof(begun).inventory) == foreign_files(begun, None) == []


def test_what_was_killed_before_it_had_a_plan_is_shown_by_its_claim(tmp_path):
    folder = tmp_path / "made" / "tiny-0123456789ab"
    (folder / "journal").mkdir(parents=True)
    claims = Claims(folder / "journal")
    assert claims.acquire("setup")
    record = (folder / "journal/setup.claim").read_bytes()
    claims.close()
    (folder / "journal/setup.claim").write_bytes(record)
    array = folder / "features.zarr/train/norm2"
    array.mkdir(parents=True)
    (array / "c.0.0.0.0.pull.partial").write_bytes(b"half")
    (array / "mine.txt").write_text("mine")
    age(folder)
    assert collect(tmp_path) == []
    (array / "mine.txt").unlink()
    assert collect(tmp_path) == [("incomplete", folder)]
    assert not folder.exists()


@pytest.mark.parametrize("rotten", [0, 1])
def test_of_two_copies_the_intact_one_stays(tmp_path, rotten):
    copies = [make(tmp_path, "flowers"), make(tmp_path, "flowers102")]
    flip(copies[rotten] / "features.zarr/train/norm2/c.0.0.0.0")
    intact = copies[1 - rotten]
    before = all_files(intact)
    assert collect(tmp_path) == [("duplicate", copies[rotten])]
    assert all_files(intact) == before


def test_no_copy_goes_where_none_is_intact(tmp_path):
    copies = [make(tmp_path, "flowers"), make(tmp_path, "flowers102")]
    for folder, name in zip(copies, ("train", "test"), strict=True):
        flip(folder / f"features.zarr/{name}/norm2/c.0.0.0.0")
    assert collect(tmp_path) == []


def test_a_copy_stays_if_the_other_has_gone_since(tmp_path):
    first, second = make(tmp_path, "flowers"), make(tmp_path, "flowers102")
    (item,) = find_stale_files(tmp_path, 0.0)
    assert item.path == second
    remove_cache(first)
    with pytest.raises(CacheBusyError, match="has changed; run the command again"):
        item.remove()
    assert (second / "manifest.json").exists()


def test_what_has_changed_since_stays(tmp_path):
    folder = start(tmp_path)
    age(folder)
    (item,) = find_stale_files(tmp_path, 7.0)
    plan = make_plan(SMALL)
    write_cache(folder, plan, make_content(plan))
    with pytest.raises(CacheBusyError, match="has changed since it was looked at"):
        item.remove()
    assert (folder / "manifest.json").exists()


def test_looking_makes_nothing_young(tmp_path):
    old = start(tmp_path)
    (old / "journal/train.00000.claim").write_text('{"token": "x", "machine": "elsewhere", "pid": 1}')
    finished = make(tmp_path, name="finished")
    (finished / "journal").mkdir()
    (finished / "journal/setup.claim").write_text("{}")
    age(tmp_path / "made")
    expected = {("incomplete", old), ("journal", finished / "journal")}
    for _ in range(2):
        assert {(item.kind, item.path) for item in find_stale_files(tmp_path, 7.0)} == expected


def test_a_removal_that_was_killed_is_finished_around_what_is_not_ours(tmp_path):
    folder = make(tmp_path)
    aside = folder.rename(folder.with_name(f".removing-{folder.name}.01234567"))
    (aside / "scores.csv").write_text("mine")
    assert collect(tmp_path) == [("removal", aside)]
    assert all_files(aside) == {"scores.csv": b"mine"}


def test_nothing_is_removed_through_a_link(tmp_path):
    folder = make(tmp_path / "root")
    (tmp_path / "root" / "alias").symlink_to("made")
    with pytest.raises(CacheError, match=r"alias is a link to .*made; name that folder"):
        refuse_linked(tmp_path / "root" / "alias" / folder.name)
    refuse_linked(folder)


def test_a_key_is_named_by_four_digits_at_least(tmp_path):
    folder = make(tmp_path)
    key = folder.name[-12:]
    for digits in (1, 3):
        with pytest.raises(RequestError, match="is too short for the beginning of a key"):
            select([tmp_path], key[:digits], exact=True)
        assert select([tmp_path], key[:digits]).path == folder
    assert select([tmp_path], key[:4], exact=True).path == folder


def test_a_borrowed_copy_in_use_is_not_removed(tmp_path):
    import fcntl

    folder = make(tmp_path)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with pytest.raises(CacheBusyError, match="another process is using this borrowed copy"):
            remove_cache(folder)
        assert (folder / "manifest.json").exists()
    finally:
        os.close(descriptor)


def test_nothing_is_half_removed_where_one_may_not_write(tmp_path, monkeypatch):
    folder = make(tmp_path)
    before, access = all_files(folder), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "norm2" not in str(path) and access(path, mode))
    with pytest.raises(CacheError, match=r"you may not write in .*norm2; ask its owner"):
        remove_cache(folder)
    assert all_files(folder) == before


def test_a_folder_that_may_not_be_read_closes_no_root(tmp_path, monkeypatch):
    folder, closed = make(tmp_path), make(tmp_path, name="theirs")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: closed not in path.parents and access(path, mode))
    assert select([tmp_path]).path == folder
    assert [(one.path, one.key) for one in unreadable([tmp_path])] == [(closed, closed.name[-12:])]
    with pytest.raises(CacheError, match=r"\(.* cannot be read: Permission denied\)"):
        select([tmp_path], closed.name)


def test_a_writer_leaves_what_only_looks_like_ours(tmp_path):
    plan = make_plan(SMALL)
    folder = cache_folder(tmp_path, plan)
    notes = ("features.zarr/train/norm2/mine.partial", "features.zarr/train/norm2/c.0.0.0.0.mine.partial")
    notes += ("journal/notes.json", "journal.mine.partial/notes.txt")
    for name in notes:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    write_cache(folder, plan, make_content(plan))
    assert [(folder / name).read_text() for name in notes] == ["mine"] * 4


def test_a_partial_copy_holds_its_columns(tmp_path):
    plan = make_plan(SMALL)
    folder = cache_folder(tmp_path, plan)
    write_cache(folder, plan, make_content(plan))
    PartialCopy(plan.inventory, "s3://bucket/made").write(folder)
    assert PartialCopy.read(folder) is not None
    document = read_sealed(folder / "held.json")
    for split in document["inventory"]["splits"].values():
        del split["arrays"]["label"]
    write_sealed(folder / "held.json", document)
    with pytest.raises(
        CacheError, match=r"held.json: split '.*' lacks the array 'label', which every copy holds"
    ):
        PartialCopy.read(folder)


def test_a_killed_removal_of_a_folder_with_another_name_is_found(tmp_path):
    folder = make(tmp_path)
    aside = folder.rename(folder.with_name(".removing-mine.01234567"))
    empty, theirs = folder.with_name(".removing-x.01234567"), folder.with_name(".removing-y.01234567")
    empty.mkdir()
    theirs.mkdir()
    (theirs / "photo.jpg").write_text("mine")
    assert {path for _, path in collect(tmp_path)} == {aside, empty}
    assert all_files(tmp_path / "made") == {".removing-y.01234567/photo.jpg": b"mine"}


def test_gc_goes_on_past_a_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    old, closed = start(tmp_path), start(tmp_path, "closed")
    age(tmp_path / "made")
    real, said = Path.is_symlink, []

    def is_symlink(path):
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_symlink", is_symlink)
    reporter = Silent()
    monkeypatch.setattr(reporter, "message", said.append, raising=False)
    found = find_stale_files(tmp_path, 7.0, reporter=reporter)
    assert [(item.kind, item.path) for item in found] == [("incomplete", old)]
    assert said == [f"{closed} cannot be read (Permission denied), so it was left alone"]
