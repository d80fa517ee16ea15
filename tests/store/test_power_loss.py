"""Power loss: whatever was not synced may be gone, yet a block that counts as committed never has a wrong value.

The real writer runs once while its writes, syncs, renames and removals are recorded. The recording is then cut at every
point, anything that was not synced by then is lost from some random point on, and what is left is read.
"""

import os
import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from featcache.store.errors import CacheError
from featcache.store.reading.reader import open_cache
from featcache.store.writing.writer import CacheWriter
from support.caches import PROVENANCE, check_partial, fill_block, make_content, make_plan

REPLAYS_PER_CUT = 3


@dataclass
class Disk:
    """A disk with a cache in front of it: contents and folder entries, each as written and as synced."""

    contents: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    synced_bytes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    entries: dict[Path, int] = field(default_factory=dict)
    synced_entries: dict[Path, int] = field(default_factory=dict)
    unsynced: dict[Path, list[tuple]] = field(default_factory=lambda: defaultdict(list))

    def apply(self, operation: tuple) -> None:
        kind, *rest = operation
        if kind == "write":
            self.contents[rest[0]] += rest[1]
        elif kind == "sync":
            self.synced_bytes[rest[0]] = len(self.contents[rest[0]])
        elif kind == "sync folder":
            for change in self.unsynced.pop(rest[0], []):
                self.change(self.synced_entries, change)
        else:
            self.unsynced[rest[0].parent].append(operation)
            self.change(self.entries, operation)

    def change(self, entries: dict[Path, int], operation: tuple) -> None:
        kind, path, *rest = operation
        if kind == "create":
            entries[path] = rest[0]
        elif kind == "rename":
            if path in entries:
                entries[rest[0]] = entries.pop(path)
        else:
            entries.pop(path, None)

    def after_power_loss(self, rng: random.Random) -> dict[Path, bytes]:
        """Every file that is left: of each folder's and each file's unsynced changes some first part survived."""
        entries = dict(self.synced_entries)
        for changes in self.unsynced.values():
            for change in changes[: rng.randint(0, len(changes))]:
                self.change(entries, change)
        return {path: self._content(number, rng) for path, number in entries.items()}

    def _content(self, number: int, rng: random.Random) -> bytes:
        synced, written = self.synced_bytes[number], len(self.contents[number])
        survived = bytes(self.contents[number][: rng.randint(synced, written)])
        # Some file systems grow a file before its data arrive.
        return survived + (b"\0" * (written - len(survived)) if rng.random() < 0.5 else b"")


class Recorder:
    """Records what the writer does to the disk, and does it."""

    def __init__(self, monkeypatch) -> None:
        self.log: list[tuple] = []
        self._files: dict[int, object] = {}
        originals = (Path.open, Path.replace, Path.unlink, os.fsync)
        path_open, path_replace, path_unlink, os_fsync = originals

        def open_(path, mode="r", *arguments, **options):
            file = path_open(path, mode, *arguments, **options)
            if mode not in ("wb", "ab"):  # "ab" of a file that is emptied before it is written
                return file
            number = len(self._files)
            self._files[number] = file
            self.log.append(("create", path, number))
            return RecordedFile(file, number, self.log)

        def replace(path, target):
            self.log.append(("rename", path, Path(target)))
            return path_replace(path, target)

        def unlink(path, missing_ok=False):
            self.log.append(("remove", path))
            return path_unlink(path, missing_ok)

        def fsync(descriptor):
            os_fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self.log.append(("sync folder", path))
            else:
                numbers = [n for n, f in self._files.items() if not f.closed and f.fileno() == descriptor]
                self.log.append(("sync", numbers[-1]))

        monkeypatch.setattr(Path, "open", open_)
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Path, "unlink", unlink)
        monkeypatch.setattr(os, "fsync", fsync)


class RecordedFile:
    """A file whose writes are recorded."""

    def __init__(self, file, number, log) -> None:
        self._file, self._number, self._log = file, number, log

    def write(self, data) -> int:
        self._log.append(("write", self._number, bytes(data)))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files come from /proc")
def test_what_counts_as_committed_is_right(tmp_path, monkeypatch):
    plan = make_plan({"train": 260, "test": 5}, num_layers=1, width=2)
    content = make_content(plan)
    directory = tmp_path / "recorded"
    with monkeypatch.context() as patched:
        recorder = Recorder(patched)
        with CacheWriter(directory, plan, checkpoint_s=0.0) as writer:
            while (block := writer.claim()) is not None:
                fill_block(block, content, 64)
                writer.commit(block)
            writer.finish(PROVENANCE, "# card\n")
    rng, disk, complete, committed = random.Random(0), Disk(), 0, set()
    for number, operation in enumerate(recorder.log):
        disk.apply(operation)
        for replay in range(REPLAYS_PER_CUT):
            left = disk.after_power_loss(rng)
            target = tmp_path / f"{number}-{replay}"
            for path, data in left.items():
                place = target / path.relative_to(directory)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            committed.add(rows := rows_committed(target, content))
            complete += rows == plan.inventory.num_samples
    assert committed == {0, 128, 256, 260, 265}, "every block was seen committed, and not before its turn"
    assert complete


def rows_committed(directory, content) -> int:
    """Rows that count as committed, after a check of all their values."""
    try:
        cache = open_cache(directory, allow_partial=True)
    except (CacheError, FileNotFoundError):
        return 0
    return check_partial(cache, content)
