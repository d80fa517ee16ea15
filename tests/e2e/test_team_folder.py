"""A folder of a team: whatever is written there, colleagues of the same group may go on with."""

import os
import stat

import pytest

from featcache.store.writing.writer import CacheWriter
from support.caches import cache_folder, make_content, make_plan, write_cache

SMALL = {"train": 60, "test": 30}
GROUP = 70_000


@pytest.fixture
def team(tmp_path, monkeypatch):
    """A folder with the set-gid bit; another group's where the tests may do that."""
    folder = tmp_path / "team"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, -1, GROUP)
    folder.chmod(0o2775)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    before = os.umask(0o002)
    yield folder
    os.umask(before)


def closed(team):
    """Files and folders below that the group may not change, or that are of another group."""
    group = team.stat().st_gid
    found = []
    for path in team.rglob("*"):
        status = path.lstat()
        if not status.st_mode & stat.S_IWGRP or status.st_gid != group:
            found.append(f"{path.relative_to(team)} {stat.filemode(status.st_mode)} {status.st_gid}")
    return found


def test_all_that_is_written_is_the_teams(cli, team, tmp_path):
    plan = make_plan(SMALL)
    folder = cache_folder(team / "root", plan)
    write_cache(folder, plan, make_content(plan))
    (team / "remote").mkdir()
    steps = (
        ("push", folder, team / "remote"),
        ("pull", f"file://{team}/remote/made/{folder.name}", "--layers", "last", "--root", team / "pulled"),
        ("pull", f"file://{team}/remote/made/{folder.name}", "--root", team / "pulled"),
        ("probe", "--cache", folder, "--head", "linear", "--protocol", "quick", "--out", team / "results"),
        ("results", team / "results"),
        ("export", folder, "--to", "npy", "--out", team / "npy"),
        ("export", folder, "--to", "h5", "--out", team / "all.h5"),
        ("export", folder, "--to", "safetensors", "--out", team / "tensors"),
        ("import", team / "npy", "--root", team / "imported"),
    )
    for step in steps:
        outcome = cli(*map(str, step))
        assert outcome.status == 0, (step, outcome.err)
    assert closed(team) == []


def test_a_killed_writer_leaves_what_the_team_may_change(team):
    plan = make_plan(SMALL)
    writer = CacheWriter(cache_folder(team / "root", plan), plan)
    block = writer.claim()
    block.append({name: values[:8] for name, values in make_content(plan)[block.block.split].items()})
    block.checkpoint()
    assert (writer.directory / "journal/train.00000.claim").exists()
    assert closed(team) == []
    writer.__exit__(None, None, None)
