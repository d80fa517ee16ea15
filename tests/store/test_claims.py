"""Claims: who holds what, who is gone, and that a process that lost a claim commits nothing."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.writing.claims import Claims, live_claims, sole_owner
from featcache.store.writing.writer import CacheWriter
from support.caches import fill_block, make_content, make_plan


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
