"""Any single operation on the disk may fail, be the last one of a process, or find the cache's folder gone.

The writer's command line runs with a fault at one operation after the other. However it ends, the next run gives the very
same bytes, and nothing half-written is read in between.
"""

import errno
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from featcache.store.errors import CacheError
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import (
    PROVENANCE,
    all_files,
    check_partial,
    make_content,
    make_plan,
    write_blocks,
    write_cache,
)
from support.faults import (
    CHANGES,
    KILL,
    READ,
    REMOVE,
    STOP,
    Fault,
    FaultyProcesses,
    build_library,
)

# How many of the operations get their turn; all of them, if there are not more.
FAULTS = int(os.environ.get("FEATCACHE_TEST_FAULTS", "16"))
SAMPLES = {"train": 130, "test": 5}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.fixture
def processes(library, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with FaultyProcesses(library, scratch) as running:
        yield running


class Written:
    """A small cache, how a process writes it, and what it must be in the end."""

    def __init__(self, processes: FaultyProcesses, tmp_path: Path) -> None:
        self.plan = make_plan(SAMPLES, num_layers=1)
        self.content = make_content(self.plan)
        self.processes = processes
        self.root = tmp_path / "root"
        self.directory = self.root / "made" / "tiny-0123456789ab"
        write_cache(tmp_path / "whole", self.plan, self.content, PROVENANCE)
        self.whole = all_files(tmp_path / "whole")

    def run(self, at=0, action=KILL, while_stopped=lambda: None, *, kinds=CHANGES, lasting=False):
        fault = Fault(self.directory, at, action, kinds, lasting)
        return self.processes.run(self.command("write"), fault, while_stopped)

    def command(self, name: str) -> tuple[object, ...]:
        return ("made", "--layers", 1, "--samples", json.dumps(SAMPLES), name, self.directory)

    def operations(self, kinds: int, first: float = 0.0, last: float = 1.0) -> list[int]:
        """Numbers of operations from all over a part of a run."""
        counted = self.run(kinds=kinds).operations
        self.clear()
        start, stop = int(counted * first) + 1, int(counted * last) + 1
        step, rng = max(1.0, (stop - start) / FAULTS), random.Random(0)
        steps = int((stop - start) / step)
        return [start + int(step * (number + rng.random())) for number in range(steps)]

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()

    def rows_that_are_there(self) -> int:
        try:
            return check_partial(open_cache(self.directory, allow_partial=True), self.content)
        except CacheError:
            return 0  # before the plan was written

    def complete(self) -> None:
        with CacheWriter(self.directory, self.plan) as writer:
            writer.finish(PROVENANCE, "# card\n")

    def check_resumed(self) -> None:
        end = self.run()
        assert (end.status, end.err) == (0, "")
        assert all_files(self.directory) == self.whole
        self.clear()


@pytest.fixture
def written(processes, tmp_path) -> Written:
    return Written(processes, tmp_path)


def check_one_line(end, start: str, folder: Path) -> None:
    assert end.status == 1, end
    (line,) = end.err.splitlines()
    assert line.startswith(f"featcache: {start}: {folder}"), line


def test_one_operation_fails(written):
    seen = set()
    for at in written.operations(CHANGES):
        end = written.run(at, errno.EIO)
        if end.status == 0:  # clearing up after the manifest failed, which the next run makes up for
            assert (written.directory / "manifest.json").exists()
        else:
            check_one_line(end, "Input/output error", written.directory)
        seen.add(written.rows_that_are_there())
        written.check_resumed()
    assert {0, 128} <= seen, "some failed before the first block was committed, some later"


def test_every_operation_fails_from_some_moment_on(written):
    for at in written.operations(CHANGES):
        end = written.run(at, errno.EIO, lasting=True)
        if end.status == 0:  # as above
            assert (written.directory / "manifest.json").exists()
        else:
            check_one_line(end, "Input/output error", written.directory)
        written.rows_that_are_there()
        written.check_resumed()


def test_killed_in_any_operation(written):
    seen = set()
    for at in written.operations(CHANGES | REMOVE):
        end = written.run(at, KILL, kinds=CHANGES | REMOVE)
        assert end.status == -signal.SIGKILL
        seen.add(written.rows_that_are_there())
        written.check_resumed()
    assert {0, 128, 135} <= seen, "before the first block, after it, and at the very end"


def test_the_root_disappears_at_any_operation(written, tmp_path):
    away = tmp_path / "away"
    # Between the making of the cache's folder and the manifest.
    for at in written.operations(CHANGES, 0.01, 0.95):
        end = written.run(at, STOP, lambda: written.root.rename(away))
        assert not written.root.exists(), "nothing is written where the root was"
        check_one_line(end, "No such file or directory", written.root)  # of it or of a folder in it
        away.rename(written.root)
        written.rows_that_are_there()
        written.check_resumed()


def test_a_cache_that_is_completed_while_it_is_opened(written, processes):
    """The journal goes while somebody reads it: that must not look like no cache, or like one that holds less."""
    reads = 0
    while True:
        with CacheWriter(written.directory, written.plan) as writer:
            write_blocks(writer, written.content)
        reads += 1
        fault = Fault(written.directory / "journal", reads, STOP, READ)
        end = processes.run(written.command("look"), fault, while_stopped=written.complete)
        assert (end.status, end.out, end.err) == (0, "135\n", "")
        written.check_resumed()
        if end.operations < reads:
            break
    assert reads > 3
