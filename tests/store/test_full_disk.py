"""A full disk, for real: the error names the file, nothing half-written stays, and the next run goes on."""

import errno
import subprocess

import pytest

from featcache.store.writing.writer import CacheWriter
from support.caches import PROVENANCE, all_files, make_content, make_plan, write_blocks, write_cache
from support.mounts import mounted


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB in memory."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=200k", "tmpfs") as disk:
        yield disk


def test_a_full_disk(tmp_path, small_disk):
    plan = make_plan(num_layers=4, width=24)
    content = make_content(plan)
    write_cache(tmp_path / "whole", plan, content, PROVENANCE)
    directory = small_disk / "cache"
    with (
        pytest.raises(OSError, match="No space left on device") as caught,
        CacheWriter(directory, plan) as writer,
    ):
        write_blocks(writer, content)
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).startswith(str(directory))
    assert list(directory.rglob("*.partial")) == []
    assert not (directory / "manifest.json").exists()

    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    with CacheWriter(directory, plan) as writer:
        assert 0 < len(writer.pending()) < len(plan.inventory.blocks()), "a block was committed before"
        write_blocks(writer, content)
        writer.finish(PROVENANCE, "# card\n")
    assert all_files(directory) == all_files(tmp_path / "whole")
