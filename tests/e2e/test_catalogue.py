"""ls over several roots, rm and gc on the command line."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from featcache.store.writing.writer import CacheWriter
from support.caches import cache_folder, make_content, make_plan, write_cache
from support.many import make_many

from .test_errors import check

SMALL = {"train": 3, "test": 3}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Power losses are not what is tested here, and syncing is most of the time of writing a small cache."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def made(root):
    plan = make_plan(SMALL)
    folder = cache_folder(root, plan)
    write_cache(folder, plan, make_content(plan))
    return folder


def test_ls_says_where_from_when_there_are_several_roots(cli, made, tmp_path, monkeypatch):
    plan = make_plan(SMALL, name="theirs")
    for theirs in (plan, make_plan(SMALL)):
        write_cache(cache_folder(tmp_path / "team", theirs), theirs, make_content(theirs))
    assert "root" not in cli("ls").out.splitlines()[0]
    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path / 'root'}:{tmp_path / 'team'}")
    lines = cli("ls").out.splitlines()
    assert lines[0].split()[-1] == "root"
    assert {(line.split()[2], line.split()[-1]) for line in lines[1:]} == {
        (made.name[-12:], str(tmp_path / "root")),
        (plan.spec.key, str(tmp_path / "team")),
    }
    assert {d["root"] for d in json.loads(cli("ls", "--json").out)} == {
        str(tmp_path / "root"),
        str(tmp_path / "team"),
    }


def test_ls_takes_every_name_of_a_model(cli, root, tmp_path):
    plan = make_plan(SMALL)
    explicit = "timm:vit_small_patch14_dinov2.lvd142m"
    folder = cache_folder(root, plan, model="dinov2-vit-s-14")
    write_cache(folder, plan, make_content(plan), {"model_names": ["mine/s"]})
    for name in ("DINOv2", "dinov2-vit-s-14", explicit, "mine/s"):
        assert len(json.loads(cli("ls", "--model", name, "--json").out)) == 1, name
    assert (
        cli("ls", "--model", "dinov2-vit-b-14").out == f"no caches that match dinov2-vit-b-14 under {root}\n"
    )
    both = cli("ls", "--model", explicit, "--dataset", "flowers")
    assert both.out == f"no caches that match {explicit} and flowers under {root}\n"
    share = tmp_path / "share"
    share.mkdir()
    assert cli("push", folder, share).status == 0
    assert len(json.loads(cli("ls", share, "--model", explicit, "--json").out)) == 1


def test_ls_of_a_thousand_caches_takes_less_than_a_second(root):
    make_many(root, 1000)
    code = (
        "import sys; sys.argv = ['featcache', 'ls']\n"
        "from featcache.cli import main\n"
        "main()\n"
        "heavy = {'torch', 'zarr', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    seconds = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        # Time of the processor, so that other work on the machine does not count.
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert len(done.stdout.splitlines()) == 1001
    assert min(seconds) < 1.0


def test_rm_asks_and_says_what_it_removes(cli, made, monkeypatch):
    check(cli("rm", made.name[-12:]), 2, str(made), "there is no terminal to ask on; add --yes")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "confirm", lambda *_, **__: False)
    declined = cli("rm", made.name[-12:])
    assert (declined.status, declined.err.splitlines()[-1]) == (0, "nothing was removed")
    assert "tiny on made, complete" in declined.err
    assert made.exists()
    monkeypatch.setattr(click, "confirm", lambda *_, **__: True)
    assert cli("rm", made.name[-12:]).out.startswith(f"removed {made} (")
    assert not made.exists()


def test_rm_refuses(cli, made, root, tmp_path):
    check(cli("rm", "--yes", tmp_path), 2, "is not a cache (it has no manifest.json")
    check(cli("rm", "--yes", ""), 2, "no cache is named")
    outcome = cli("rm", "--yes", "ffff")
    assert outcome.status == 2
    assert "no cache matches ffff" in outcome.err
    plan = make_plan(SMALL, name="busy")
    with CacheWriter(cache_folder(root, plan), plan) as writer:
        writer.claim()
        check(cli("rm", "--yes", plan.spec.key), 1, "another process is writing this cache")
    assert made.exists()


def test_gc_is_dry_until_told_and_leaves_shared_roots_alone(cli, made, root, tmp_path, monkeypatch):
    team = tmp_path / "team"
    monkeypatch.setenv("FEATCACHE_ROOT", f"{root}:{team}")
    assert cli("gc").out == f"nothing to remove under {root}\n"
    plan = make_plan(SMALL, name="unfinished")
    for where in (root, team):
        with CacheWriter(cache_folder(where, plan), plan) as writer:
            for path in (writer.directory, *writer.directory.rglob("*")):
                os.utime(path, (0, 0))
    mine, theirs = cache_folder(root, plan), cache_folder(team, plan)
    for path in (mine, *mine.rglob("*")):
        os.utime(path, (0, 0))
    dry = cli("gc")
    assert (dry.status, str(mine) in dry.out, str(theirs) in dry.out) == (0, True, False)
    assert dry.out.splitlines()[-1].endswith("--yes removes them")
    assert mine.exists()
    done = json.loads(cli("gc", "--yes", "--json").out)
    assert [(item["kind"], Path(item["path"]), item["removed"]) for item in done] == [
        ("incomplete", mine, True)
    ]
    assert (mine.exists(), theirs.exists(), made.exists()) == (False, True, True)
    check(cli("gc", "--older-than", -1), 2, "--older-than must be 0 days or more, got -1")


def test_rm_says_what_stays(cli, made):
    (made / "results").mkdir()
    (made / "results" / "scores.csv").write_text("mine")
    outcome = cli("rm", made.name, "--yes")
    assert outcome.status == 0
    assert outcome.err == f"{made} stays: it holds what is not featcache's (results)\n"
    assert [path.name for path in made.iterdir()] == ["results"]


def test_rm_refuses_links_and_short_keys(cli, made, root):
    (root / "alias").symlink_to("made")
    check(cli("rm", root / "alias" / made.name, "--yes"), 1, "is a link to")
    check(cli("rm", f"alias/{made.name}", "--yes"), 1, "is a link to")
    short = cli("rm", made.name[-12:-11], "--yes")
    assert short.status == 2
    assert "is too short for the beginning of a key, which needs 4 digits here" in short.err
    assert made.exists()


def test_gc_takes_a_root_under_two_names_once(cli, root, tmp_path):
    plan = make_plan(SMALL)
    for dataset in ("flowers", "flowers102"):
        write_cache(cache_folder(root, plan, dataset), plan, make_content(plan))
    (tmp_path / "alias").symlink_to(root)
    done = cli("gc", "--yes", "--json", "--root", root, "--root", tmp_path / "alias")
    assert done.status == 0
    assert [item["removed"] for item in json.loads(done.out)] == [True]
    assert len(list(root.glob("*/*/manifest.json"))) == 1


def test_a_closed_folder_is_a_state_of_ls_and_a_line_elsewhere(cli, made, root, monkeypatch):
    plan = make_plan(SMALL, name="theirs")
    closed = cache_folder(root, plan)
    write_cache(closed, plan, make_content(plan))
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: closed not in Path(path).parents and access(path, mode)
    )
    rows = {row["key"]: row for row in json.loads(cli("ls", "--json").out)}
    assert rows[plan.spec.key]["state"] == "unreadable"
    assert "Permission denied" in rows[plan.spec.key]["error"]
    assert rows[made.name[-12:]]["state"] == "complete"
    assert "unreadable" in cli("ls").out
    for command in (("info",), ("verify",), ("verify", "--all")):
        outcome = cli(*command)
        assert outcome.status == 0
        assert f"note: {closed} cannot be read (Permission denied), so it was passed over" in outcome.err
    assert f"({closed} cannot be read: Permission denied)" in cli("info", plan.spec.key).err
