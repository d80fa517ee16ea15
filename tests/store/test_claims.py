"""Claims: who holds what, who is gone, and that a process that lost a claim commits nothing."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.writing.claim_files import live_claims
from featcache.store.writing.claims import Claims, sole_owner
from featcache.store.writing.writer import CacheWriter
from support.caches import PROVENANCE, all_files, fill_block, make_content, make_plan, write_cache


@pytest.fixture
def claims(tmp_path):
    made = [Claims(tmp_path, stale_s=5.0) for _ in range(2)]
    yield made
    for one in made:
        one.close()


def test_one_holder_at_a_time(tmp_path, claims):
    one, other = claims
    assert one.acquire("a")
    assert not other.acquire("a")
    assert other.acquire("b")
    assert live_claims(tmp_path) == ["a", "b"]
    one.release("a")
    assert other.acquire("a")
    assert not one.holds("a")
    assert other.holds("a")


def test_a_claim_of_another_machine_lasts_until_it_is_stale(tmp_path, claims):
    path = tmp_path / "a.claim"
    path.write_text(json.dumps({"token": "x", "machine": "elsewhere", "pid": 1}))
    assert not claims[0].acquire("a")
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    assert claims[0].acquire("a")
    assert not claims[1].acquire("a"), "taken over, so alive again"


def test_without_locks_only_the_heartbeat_tells(tmp_path, claims, monkeypatch):
    # As on a network file system that is mounted without them. Both claims are of this very machine.
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    one, other = claims
    assert one.acquire("a")
    assert not other.acquire("a")
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "a.claim", (an_hour_ago, an_hour_ago))
    assert other.acquire("a")
    assert not one.holds("a")


def test_a_claim_in_a_folder_that_is_gone(tmp_path):
    cache, away = tmp_path / "cache", tmp_path / "away"
    (cache / "journal").mkdir(parents=True)
    claims = Claims(cache / "journal")
    assert claims.acquire("a")
    cache.rename(away)
    with pytest.raises(FileNotFoundError, match="journal"):
        claims.holds("a")
    with pytest.raises(FileNotFoundError, match="journal"):
        claims.wait("b", until=lambda: True)
    claims.close()
    assert not cache.exists()
    # Another process that completes the cache takes the journal only.
    (cache / "journal").mkdir(parents=True)
    claims = Claims(cache / "journal")
    (cache / "journal").rmdir()
    assert not claims.wait("b", until=lambda: True)
    claims.close()


def test_a_heartbeat_on_a_broken_disk_is_silent(tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    # An exception in the thread of the heartbeat would be an error here, and a traceback for the user.
    claims = Claims(tmp_path, heartbeat_s=0.01)
    assert claims.acquire("a")
    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", broken)
        time.sleep(0.1)
    before = (tmp_path / "a.claim").stat().st_mtime_ns
    time.sleep(0.1)
    assert (tmp_path / "a.claim").stat().st_mtime_ns > before, "it goes on when the disk does"
    claims.close()


def test_a_forked_child_does_not_keep_the_claims_of_a_dead_process(tmp_path, claims):
    # A data loader's workers live on for a moment when their process is killed.
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from featcache.store.writing.claims import Claims\n"
        "claims = Claims(Path(sys.argv[1]))\n"
        "assert claims.acquire('a')\n"
        "if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert not claims[0].acquire("a")
        process.kill()
        process.wait()
        assert claims[0].acquire("a")
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_nobody_begins_while_a_cache_has_a_sole_owner(tmp_path, claims):
    with sole_owner(tmp_path):
        assert not claims[0].acquire("setup")
    assert claims[0].acquire("train.00000")
    with pytest.raises(CacheBusyError, match="another process is writing this cache"), sole_owner(tmp_path):
        pass


def test_a_block_whose_claim_was_lost_is_not_committed(tmp_path):
    plan = make_plan()
    content = make_content(plan)
    with CacheWriter(tmp_path, plan) as writer:
        block = writer.claim()
        fill_block(block, content, 32)
        claim = tmp_path / "journal" / "train.00000.claim"
        claim.write_text(json.dumps({"token": "somebody else", "machine": "elsewhere", "pid": 1}))
        with pytest.raises(CacheError, match="another process took over block 0 of 'train'"):
            writer.commit(block)
        assert writer.pending()[0] == block.block


def refuse(*errors):
    """A system call that the file system does not have: fails with each error in turn, then with the last one."""
    left = list(errors)

    def call(*arguments, **options):
        number = left.pop(0) if len(left) > 1 else left[0]
        raise OSError(number, os.strerror(number))

    return call


NO_LINKS = [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS]


@pytest.mark.parametrize("number", NO_LINKS)
@pytest.mark.parametrize("locks", [True, False])
def test_claims_without_hard_links(tmp_path, claims, monkeypatch, number, locks):
    monkeypatch.setattr(os, "link", refuse(number))
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refuse(number))
    one, other = claims
    assert one.acquire("a")
    assert not other.acquire("a")
    assert one.holds("a")
    assert live_claims(tmp_path) == ["a"]
    one.release("a")
    assert [path.name for path in tmp_path.iterdir()] == []
    assert other.acquire("a")


def test_a_claim_that_was_begun_without_hard_links_is_left_alone_and_then_taken(
    tmp_path, claims, monkeypatch
):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    path = tmp_path / "a.claim"
    path.touch()  # killed between making the claim and signing it
    assert not claims[0].acquire("a")
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    assert claims[0].acquire("a")
    assert claims[0].holds("a")


def test_a_cache_is_written_without_links_locks_and_syncing_of_folders(tmp_path, monkeypatch):
    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    plan = make_plan()
    write_cache(tmp_path / "as usual", plan, make_content(plan), PROVENANCE)
    for name, call in (("link", refuse(*NO_LINKS)), ("utime", refuse(errno.ENOSYS)), ("fsync", fsync)):
        monkeypatch.setattr(os, name, call)
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOTSUP))
    write_cache(tmp_path / "poor", plan, make_content(plan), PROVENANCE)
    assert all_files(tmp_path / "poor") == all_files(tmp_path / "as usual")


def test_a_heartbeat_without_times_is_a_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "utime", refuse(errno.ENOSYS))
    claims = Claims(tmp_path, heartbeat_s=0.01)
    assert claims.acquire("a")
    before = (tmp_path / "a.claim").stat().st_mtime_ns
    for _ in range(200):
        if (tmp_path / "a.claim").stat().st_mtime_ns > before:
            break
        time.sleep(0.01)
    assert (tmp_path / "a.claim").stat().st_mtime_ns > before
    claims.close()


def odd(path, kind):
    """Something in the place of a claim that is none."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
        os.chdir(here)
    else:
        path.write_bytes({"long": b"x" * 5000, "deep": b"[" * 5000, "empty": b"", "text": b"\xff"}[kind])


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "socket"])
def test_what_cannot_be_a_claim_blocks_nothing(tmp_path, claims, kind):
    odd(tmp_path / "a.claim", kind)
    assert live_claims(tmp_path) == []
    assert claims[0].acquire("a")
    assert claims[0].holds("a")
    assert not claims[1].acquire("a")


@pytest.mark.parametrize("kind", ["long", "deep", "empty", "text", "sparse"])
def test_a_claim_that_names_nobody_lasts_until_it_is_stale(tmp_path, claims, kind):
    path = tmp_path / "a.claim"
    if kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        odd(path, kind)
    assert not claims[0].acquire("a")
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    assert live_claims(tmp_path) == []
    assert claims[0].acquire("a")
    assert claims[0].holds("a")
    assert path.stat().st_size == 256
    assert not claims[1].acquire("a")


def test_a_folder_with_something_in_it_is_named(tmp_path, claims):
    (tmp_path / "a.claim" / "mine").mkdir(parents=True)
    with pytest.raises(CacheError, match=r"a\.claim: nobody holds this claim, but it cannot be removed"):
        claims[0].acquire("a")


@pytest.mark.parametrize("modes", [(os.O_RDWR,), (os.O_RDWR, os.O_RDONLY)], ids=["not written", "not read"])
def test_the_claim_of_another_user_is_taken_over(tmp_path, claims, monkeypatch, modes):
    """As of a colleague whose umask lets nobody else write, or read: the claim is replaced."""
    path = tmp_path / "a.claim"
    path.write_text(json.dumps({"token": "x", "machine": "elsewhere", "pid": 1}).ljust(256))
    os.link(path, tmp_path / "kept")  # so that no other file gets its number
    theirs, real = path.stat().st_ino, os.open

    def others(name, flags, *mode, **options):
        if os.path.exists(name) and os.stat(name).st_ino == theirs and flags & os.O_ACCMODE in modes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return real(name, flags, *mode, **options)

    monkeypatch.setattr(os, "open", others)
    assert not claims[0].acquire("a")
    assert live_claims(tmp_path) == ["a"]
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    assert live_claims(tmp_path) == []
    assert claims[0].acquire("a")
    assert claims[0].holds("a")
    assert not claims[1].acquire("a")


def test_a_claim_from_tomorrow_is_abandoned_when_it_does_not_move(tmp_path, monkeypatch):
    path = tmp_path / "a.claim"
    path.write_text(json.dumps({"token": "x", "machine": "elsewhere", "pid": 1}))
    claims = Claims(tmp_path, stale_s=5.0)
    os.utime(path, (time.time() + 3600,) * 2)
    assert not claims.acquire("a")
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 6.0)
    assert claims.acquire("a")
    claims.close()
    path.touch()
    os.utime(path, (time.time() + 10 * 86_400,) * 2)
    claims = Claims(tmp_path, stale_s=5.0)
    assert claims.acquire("a"), "no clock is wrong by days"
    claims.close()


def test_waiting_is_said_once(tmp_path, claims, monkeypatch):
    path, said, polls = tmp_path / "a.claim", [], iter(range(100))
    path.write_text(json.dumps({"token": "x", "machine": "elsewhere", "pid": 1}))
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + next(polls) * 0.5)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert not claims[0].wait("a", until=lambda: len(said) > 0, say=said.append)
    (line,) = said
    assert line.startswith(
        "waiting for process 1 on another machine (taken over 5 s after its last sign of life)"
    )


def test_looking_changes_nothing(tmp_path):
    (tmp_path / "a.claim").write_text(json.dumps({"token": "x", "machine": "elsewhere", "pid": 1}))
    for path in (tmp_path / "a.claim", tmp_path):
        os.utime(path, (1, 1))
    before = [path.stat().st_mtime for path in (tmp_path, *tmp_path.iterdir())]
    assert live_claims(tmp_path) == []
    assert [path.stat().st_mtime for path in (tmp_path, *tmp_path.iterdir())] == before
