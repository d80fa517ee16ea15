"""Several roots, short reads of manifests, safe removal, and what can go."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from featcache.store.catalogue import find_key, removal, scan, select
from featcache.store.catalogue.entries import folder_entry
from featcache.store.catalogue.removal import remove_cache
from featcache.store.catalogue.stale_files import find_stale_files
from featcache.store.catalogue.summary import summarize
from featcache.store.errors import CacheBusyError, CacheError, RequestError
from featcache.store.manifest import Manifest
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, cache_folder, make_content, make_plan, write_cache
from support.small import SMALL, make, no_waiting_for_the_disk  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def start(root, dataset="made", **changes):
    plan = make_plan(SMALL, **changes)
    with CacheWriter(cache_folder(root, plan, dataset), plan) as writer:
        return writer.directory


def age(folder, days):
    then = time.time() - days * 86_400
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


def kinds(root, days=7.0):
    return {(item.kind, item.path) for item in find_stale_files(root, days)}


def test_the_first_root_wins_but_a_complete_cache_goes_first(tmp_path):
    mine, team = tmp_path / "mine", tmp_path / "team"
    both, theirs = make(mine), make(team, name="theirs")
    make(team)
    start(mine, name="theirs")
    found = {entry.path: entry.root for entry in scan([mine, team])}
    assert found == {both: mine, theirs: team}
    assert find_key([mine, team], theirs.name[-12:]).path == theirs
    assert sorted(entry.complete for entry in scan([mine])) == [False, True]


def test_what_cannot_be_undone_is_not_guessed(tmp_path):
    complete = make(tmp_path)
    start(tmp_path, "other")
    assert select([tmp_path], complete.name).path == complete
    with pytest.raises(RequestError, match="2 caches match; name one in full:\n  made/"):
        select([tmp_path], complete.name, exact=True)


@pytest.mark.parametrize("num_classes", [3, 5000])
def test_a_summary_is_what_the_whole_manifest_says(tmp_path, num_classes):
    folder = make(tmp_path, num_classes=num_classes, name='"blocks": [')
    entry = folder_entry(folder)
    whole = Manifest.read(folder)
    summary = summarize(entry)
    assert (summary.inventory, summary.missing_blocks) == (whole.inventory, 0)
    assert summary.num_layers == len(entry.cache["train"].layers)
    # Another layout of the same document is no fault.
    document = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(document, sort_keys=True))
    assert summarize(entry) == summary


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-30], "not valid JSON"),
        (lambda text: text.replace("bicubic", "bilinear"), "field 'key' is"),
        (lambda text: text.replace('"splits"', '"slits"'), "field 'splits' must be dict"),
    ],
)
def test_a_summary_of_a_damaged_manifest(tmp_path, damage, message):
    folder = make(tmp_path)
    entry = folder_entry(folder)
    (folder / "manifest.json").write_text(damage((folder / "manifest.json").read_text()))
    with pytest.raises(CacheError, match=message):
        summarize(entry)


def test_removal_survives_a_kill_at_any_file(tmp_path, monkeypatch):
    """Whatever is deleted when the kill comes, the cache is gone, its name is free and gc finds the rest."""
    folder = make(tmp_path)

    def killed(path):
        next(Path(path).rglob("c.0*")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(removal.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_cache(folder)
    assert not folder.exists()
    assert list(scan([tmp_path])) == []
    make(tmp_path)
    (leftover,) = find_stale_files(tmp_path, 7.0)
    assert (leftover.kind, leftover.path.name.startswith(f".removing-{folder.name}.")) == ("removal", True)
    leftover.remove()
    assert find_stale_files(tmp_path, 0.0) == []
    assert [entry.path for entry in scan([tmp_path])] == [folder]


def test_links_are_not_followed(tmp_path):
    folder = make(tmp_path / "root")
    outside = tmp_path / "outside"
    (folder / "features.zarr").rename(outside)
    (folder / "features.zarr").symlink_to(outside)
    before = all_files(outside)
    link = tmp_path / "root" / "made" / f"link-{folder.name[-12:]}"
    link.symlink_to(folder)
    with pytest.raises(CacheError, match=r"is a link to .*; name that folder, or remove the link yourself"):
        remove_cache(link)
    assert all(item.path != link for item in find_stale_files(tmp_path / "root", 0.0))
    remove_cache(folder)
    assert not folder.exists()
    assert all_files(outside) == before


def test_a_cache_that_is_being_written_stays(tmp_path):
    plan = make_plan(SMALL)
    folder = cache_folder(tmp_path, plan)
    with CacheWriter(folder, plan) as writer:
        assert writer.claim() is not None
        age(folder, days=30)
        with pytest.raises(CacheBusyError, match="another process is writing this cache"):
            remove_cache(folder)
        assert find_stale_files(tmp_path, 0.0) == []
    assert folder.exists()
    remove_cache(folder)
    assert not folder.exists()


def test_only_caches_are_removed(tmp_path):
    project = tmp_path / "code" / "site-0123456789ab"
    (project / "journal").mkdir(parents=True)
    (project / "manifest.json").write_text('{"name": "a web site"}')
    (project / "index.html").write_text("mine")
    with pytest.raises(CacheError, match=r"is not a cache \(it holds index.html\), so it is not removed"):
        remove_cache(project)
    # A cache that is damaged can go.
    folder = make(tmp_path)
    (folder / "manifest.json").write_text("{")
    remove_cache(folder)
    assert not folder.exists()
    assert (project / "index.html").exists()


def test_a_read_only_root_is_a_clear_error(tmp_path, monkeypatch):
    folder = make(tmp_path)

    def refuse(self, target):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(
        CacheError, match=r"cannot be removed \(Read-only file system\); its folder is read-only"
    ):
        remove_cache(folder)
    assert folder.exists()


def test_what_can_go_and_what_not(tmp_path):
    kept = make(tmp_path)
    recent, old = start(tmp_path, name="recent"), start(tmp_path, name="old")
    age(old, days=8)
    finished = make(tmp_path, name="finished")
    (finished / "journal").mkdir()
    stale, fresh = finished / "request.json.partial", kept / "request.json.partial"
    for path in (stale, fresh):
        path.write_text("{")
    for path in (stale, finished / "journal"):
        os.utime(path, (0, 0))
    assert kinds(tmp_path) == {
        ("incomplete", old),
        ("partial", stale),
        ("journal", finished / "journal"),
    }
    assert ("incomplete", recent) in kinds(tmp_path, days=0.0)
    for item in find_stale_files(tmp_path, 7.0):
        item.remove()
    assert kinds(tmp_path) == set()
    assert {entry.path for entry in scan([tmp_path])} == {kept, recent, finished}
    assert kinds(tmp_path / "nowhere") == set()


def test_only_an_exact_copy_of_a_whole_cache_is_a_duplicate(tmp_path):
    first, second = make(tmp_path, "flowers"), make(tmp_path, "flowers102")
    assert kinds(tmp_path) == {("duplicate", second)}
    next((first / "features.zarr").rglob("c.0")).unlink()
    assert kinds(tmp_path) == {("duplicate", first)}, "the second is the only whole one"
    plan = make_plan(SMALL, batch_size=7)
    write_cache(cache_folder(tmp_path, plan, "other"), plan, make_content(plan))
    assert kinds(tmp_path) == {("duplicate", first)}, "another batch size may have given other bytes"
