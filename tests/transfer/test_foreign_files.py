"""A shared folder that also holds what others put there: pushing, pulling and removing leave it where it is."""

import pytest

from featcache.store.address import parse_address
from featcache.store.errors import CacheBusyError
from featcache.store.transfer.pull import pull
from featcache.store.transfer.push import push
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, cache_folder, fill_block, make_content, write_cache

NOTES = (
    "results/scores.csv",
    "notes.txt",
    "features.zarr/train/norm2/notes.txt",
    "features.zarr/mine/of/a/kind/c.0.0",
    "journal/notes.txt",
)


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


def put_notes(folder):
    for name in NOTES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return dict.fromkeys(NOTES, b"mine")


def test_rm_on_a_shared_folder_leaves_what_is_not_ours(cli, made, share):
    push(made.directory, parse_address(str(share)))
    notes = put_notes(share / made.name)
    assert cli("rm", f"file://{share}/{made.name}", "--yes").status == 0
    assert all_files(share / made.name) == notes


def test_push_force_leaves_what_is_not_ours(made, share, tmp_path):
    push(made.directory, parse_address(str(share)))
    notes = put_notes(share / made.name)
    other = tmp_path / "other" / made.name
    write_cache(other, made.plan, make_content(made.plan, seed=1))
    push(other, parse_address(str(share)), force=True)
    there = all_files(share / made.name)
    assert {name: there.get(name) for name in notes} == notes
    assert (share / made.name / "manifest.json").read_bytes() == (other / "manifest.json").read_bytes()


@pytest.mark.parametrize("force", [False, True])
def test_an_extraction_in_a_shared_folder_is_not_cleared_by_a_push(cli, made, share, force):
    # The folder that some push to is a root for others.
    with CacheWriter(cache_folder(share, made.plan), made.plan) as writer:
        block = writer.claim()
        fill_block(block, made.content, 32)
        writer.commit(block)
    before = all_files(share)
    with pytest.raises(CacheBusyError, match="is being extracted there"):
        push(made.directory, parse_address(str(share)), force=force)
    removed = cli("rm", f"file://{share}/{made.name}", "--yes")
    assert removed.status == 1
    assert "is being extracted there" in removed.err
    assert all_files(share) == before


def test_a_pull_into_a_folder_that_holds_other_files(made, share, tmp_path):
    push(made.directory, parse_address(str(share)))
    notes = put_notes(tmp_path / "new" / made.name)
    pull(parse_address(f"file://{share}/{made.name}"), [tmp_path / "new"])
    here = all_files(tmp_path / "new" / made.name)
    assert {name: here.get(name) for name in notes} == notes
