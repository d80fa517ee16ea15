"""One block of rows on its way to disk: temporary files beside their targets, hashed while they are written.

A block has a file for each array and layer, dozens or hundreds. They are opened at the first write and not when the block
is claimed, because an extraction claims several blocks ahead and a process may have only 1,024 files open by default.
"""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from dataclasses import field as field_of
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from featcache.store.arrays import DTYPES, ArrayInfo
from featcache.store.errors import CacheError
from featcache.store.files import (
    PARTIAL_SUFFIX,
    JsonObject,
    field,
    read_sealed,
    sync_directory,
    temporary_for,
    write_sealed,
)
from featcache.store.inventory import Block, SplitInventory
from featcache.store.machine import usable_cpus
from featcache.store.manifest import BlockRecord, FileRecord, files_from_dict, read_orientations
from featcache.store.regular_files import open_regular

COPY_BYTES = 2**20
# Copying and hashing need processors, which decoding may want too.
WRITE_THREADS = 4
_UPRIGHT = "1"


@dataclass(frozen=True)
class Progress:
    """How far a block had come at its last checkpoint: all that a later process needs to go on."""

    rows: int
    token: str
    """Of the process that wrote the temporary files."""
    files: Mapping[str, FileRecord]
    """Size and digest of what was durable, by path within features.zarr."""
    orientations: str = ""
    """As in `BlockRecord`, of the rows so far."""
    reused: Mapping[str, int] = field_of(default_factory=dict)
    """Number of rows among them that were taken over from other caches, by cache."""

    def write(self, path: Path) -> None:
        """Write the progress; the temporary files must be durable up to here."""
        files = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in self.files.items()}
        more: JsonObject = {"orientations": self.orientations} if self.orientations else {}
        more |= {"reused": dict(self.reused)} if self.reused else {}
        write_sealed(path, {"rows": self.rows, "token": self.token, "files": files, **more})

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read it back; None if there is none or it is damaged, so that the block starts anew."""
        try:
            document = read_sealed(path)
            rows = field(document, "rows", int, str(path))
            token = field(document, "token", str, str(path))
            files = files_from_dict(field(document, "files", dict, str(path)), str(path))
            orientations, reused = read_orientations(document, rows, str(path)), reused_rows(document)
        except (FileNotFoundError, CacheError):
            return None
        # It becomes part of a path.
        return cls(rows, token, files, orientations, reused) if re.fullmatch("[0-9a-f]{12}", token) else None


def reused_rows(document: Mapping[str, Any]) -> dict[str, int]:
    """Return the field `reused` of a progress or commit record: number of rows by cache; empty if there is none.

    Raises:
        CacheError: the field is of the wrong type.
    """
    reused = document.get("reused", {})
    if not isinstance(reused, dict) or not all(type(count) is int for count in reused.values()):
        raise CacheError("field 'reused' must hold numbers of rows")
    return reused


class BlockWriter:
    """Collects the rows of one block. Only the holder of the block's claim makes one.

    Args:
        features: the folder features.zarr.
        split: the split of the block.
        block: the block.
        token: of this process; it is part of the temporary names, so that no other process writes to them.
        progress_path: where checkpoints are recorded.
        checkpoint_s: seconds between checkpoints.
        threads: copy and hash, and wait for the disk.
    """

    def __init__(
        self,
        features: Path,
        split: SplitInventory,
        block: Block,
        token: str,
        progress_path: Path,
        checkpoint_s: float,
        threads: Executor,
    ) -> None:
        self._features = features
        self._split = split
        self.block = block
        self._token = token
        self._progress_path = progress_path
        self._checkpoint_s = checkpoint_s
        self._threads = threads
        self._checkpointed = time.monotonic()
        self.rows = 0
        """Rows appended so far."""
        self.reused: Counter[str] = Counter()
        """Number of rows among them, and among those appended next, that were taken over from other caches, by cache."""
        self._orientations = ""
        self._files = self._chunk_files()
        self._restore()

    def append(self, batch: Mapping[str, npt.NDArray[np.generic]], orientations: str = "") -> None:
        """Append the next rows to every array of the split, and make them durable now and then.

        Args:
            batch: per array name the rows as ``[B, L, K, D]`` (arrays with layers) or ``[B, ...]``, in the stored type.
            orientations: EXIF orientation of each image, a digit from 1 to 8; empty where images are taken as stored.

        Raises:
            ValueError: an array is missing, unknown, of the wrong shape or type, or the block is full.
        """
        if batch.keys() != self._split.arrays.keys():
            raise ValueError(f"a batch must hold {sorted(self._split.arrays)}, got {sorted(batch)}")
        rows = len(next(iter(batch.values())))
        if self.rows + rows > self.block.rows:
            raise ValueError(f"the block has {self.block.rows} rows, {self.rows + rows} were appended")
        for name, values in batch.items():
            self._split.arrays[name].check_rows(values, rows)
        self.rows += rows
        self._orientations += orientations or _UPRIGHT * rows
        self._write(batch, last=self.rows == self.block.rows)
        if time.monotonic() - self._checkpointed >= self._checkpoint_s and self.rows < self.block.rows:
            self.checkpoint()

    def take_over(
        self, features: Path, record: BlockRecord, columns: Mapping[str, npt.NDArray[np.generic]]
    ) -> int:
        """Fill the block with files of another cache, and with columns of its own.

        Files become hard links where the file system has them, so they cost neither time nor space. What an earlier process had
        begun of the block is dropped.

        Args:
            features: the folder features.zarr of the other cache.
            record: the files to take over, which are those of the block but for the columns.
            columns: the rows of the other arrays ``[R, ...]``, in the stored type.

        Returns:
            The number of files that were copied, because no link could be made.

        Raises:
            CacheError: a file of the other cache is missing, of another size or, where it is copied, damaged.
        """
        for file in self._files.values():
            file.close(keep=False)
        self._files, copied = self._chunk_files(), 0
        for name, file in self._files.items():
            if name in record.files:
                copied += file.take_over(features / name, record.files[name])
            else:
                file.array.check_rows(columns[file.array.name], self.block.rows)
                file.append(columns[file.array.name])
                file.pad()
                file.sync()
        self.rows, self._orientations = self.block.rows, record.orientations
        return copied

    def checkpoint(self) -> None:
        """Make the rows so far durable, so that a process that takes the block over goes on from here."""
        records = self._threads.map(_ChunkFile.sync, self._files.values())
        files = dict(zip(self._files, records, strict=True))
        self._sync_folders()
        Progress(self.rows, self._token, files, self._turned(), self.reused).write(self._progress_path)
        self._checkpointed = time.monotonic()

    def finish(self) -> BlockRecord:
        """Rename all files of the block, which the last `append` synced, and return its commit record.

        Raises:
            ValueError: rows are missing.
        """
        if self.rows != self.block.rows:
            raise ValueError(f"the block has {self.block.rows} rows, only {self.rows} were appended")
        files = {name: file.finish() for name, file in self._files.items()}
        self._sync_folders()
        return BlockRecord(self.block, files, self._turned())

    def close(self) -> None:
        """End without committing: what a checkpoint recorded stays for the next process, the rest goes."""
        progress = Progress.read(self._progress_path)
        keep = progress is not None and progress.token == self._token
        for file in self._files.values():
            file.close(keep)

    def _turned(self) -> str:
        """Return the orientations of the rows so far; empty if no image was turned."""
        return self._orientations if self._orientations.strip(_UPRIGHT) else ""

    def _write(self, batch: Mapping[str, npt.NDArray[np.generic]], last: bool) -> None:
        """Append to all files; after the `last` rows they are synced, each while others are still being hashed."""

        def write(files: Sequence[_ChunkFile]) -> list[Future[FileRecord]]:
            syncs = []
            for file in files:
                file.append(batch[file.array.name])
                if last:
                    file.pad()
                    syncs.append(self._threads.submit(file.sync))
            return syncs

        # One job per core: handing over every file would take as long as writing a small one.
        files, jobs = list(self._files.values()), min(WRITE_THREADS, usable_cpus())
        for syncs in self._threads.map(write, [files[number::jobs] for number in range(jobs)]):
            for sync in syncs:
                sync.result()

    def _sync_folders(self) -> None:
        list(self._threads.map(sync_directory, self._folders()))

    def _folders(self) -> list[Path]:
        return [self._features / self._split.name / array for array in self._split.arrays]

    def _chunk_files(self) -> "dict[str, _ChunkFile]":
        """Return the files of the block, by path within features.zarr; none of them is opened yet."""
        files = {}
        for array in self._split.arrays.values():
            folder = self._features / self._split.name / array.name
            for layer, name in enumerate(array.chunk_names(self.block.index)):
                file = _ChunkFile(folder / name, array, layer, self._token)
                files[f"{self._split.name}/{array.name}/{name}"] = file
        return files

    def _restore(self) -> None:
        """Take over what an earlier process made durable, by copying: that process might still write to its files."""
        progress = Progress.read(self._progress_path)
        if progress is not None and 0 < progress.rows < self.block.rows:
            if all(file.copy_from(progress, name) for name, file in self._files.items()):
                self.rows = progress.rows
                self.reused.update(progress.reused)
                self._orientations = progress.orientations or _UPRIGHT * self.rows
            else:
                for file in self._files.values():
                    file.close(keep=False)
                self._files = self._chunk_files()
        if self.rows:
            self.checkpoint()
            for file in self._files.values():
                file.release()  # the block's turn to be written may be far off
        else:
            self._progress_path.unlink(missing_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove temporary files of this block that other processes left."""
        names, mine = {file.path.name for file in self._files.values()}, f".{self._token}{PARTIAL_SUFFIX}"
        for folder in self._folders():
            # Faster than a glob, which matters in a folder of thousands of files.
            for found in os.listdir(folder):
                others = found.endswith(PARTIAL_SUFFIX) and not found.endswith(mine)
                if others and temporary_for(found) in names:
                    (folder / found).unlink(missing_ok=True)


class _ChunkFile:
    """One chunk file under way: hashed while it is written, so that no byte is read again."""

    def __init__(self, path: Path, array: ArrayInfo, layer: int, token: str) -> None:
        self.path = path
        self.array = array
        self._layer = layer
        self._partial = _partial(path, token)
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._taken_over: FileRecord | None = None

    def append(self, rows: npt.NDArray[np.generic]) -> None:
        values = rows[:, self._layer] if self.array.layers else rows
        self._write(np.ascontiguousarray(values).data.cast("B") if values.size else b"")

    def pad(self) -> None:
        fill = DTYPES[self.array.dtype].fill_bytes
        self._write(fill * ((self.array.chunk_bytes - self._bytes) // len(fill)))

    def copy_from(self, progress: Progress, name: str) -> bool:
        """Copy what a checkpoint made durable; False if it does not have the recorded digest."""
        record = progress.files.get(name)
        try:
            descriptor, _ = open_regular(_partial(self.path, progress.token))
        except (FileNotFoundError, CacheError):  # gone, private to another user, or not our file
            return False
        with open(descriptor, "rb") as source:
            while record and self._bytes < record.bytes:
                data = source.read(min(COPY_BYTES, record.bytes - self._bytes))
                if not data:
                    return False
                self._write(data)
        return record is not None and self._digest.hexdigest() == record.sha256

    def take_over(self, source: Path, record: FileRecord) -> bool:
        """Link the file to a finished one, whose record it gets; return whether it had to be copied instead."""
        problem = record.mismatch(source)
        if problem:
            raise CacheError(f"{source}: {problem}; run `featcache verify` on its cache")
        try:
            os.link(source, self._partial, follow_symlinks=False)
        except OSError:  # another file system, or one without links
            with open(open_regular(source)[0], "rb") as file:
                while data := file.read(COPY_BYTES):
                    self._write(data)
            if (written := self.sync()) != record:
                raise CacheError(
                    f"{source}: content does not match its SHA-256, got {written.sha256[:12]}; run `featcache verify` on its cache"
                ) from None
            return True
        self._taken_over = record
        return False

    def sync(self) -> FileRecord:
        with _with_filename(self.path):
            file = self._opened()
            file.flush()
            os.fsync(file.fileno())
        return FileRecord(self._bytes, self._digest.hexdigest())

    def finish(self) -> FileRecord:
        """Give the file its name; it must be padded and synced."""
        with _with_filename(self.path):
            self.release()
            self._partial.replace(self.path)
        return self._taken_over or FileRecord(self._bytes, self._digest.hexdigest())

    def release(self) -> None:
        """Close the descriptor; the next write opens the file again and continues at its end."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self, keep: bool) -> None:
        # On a full disk closing fails too: it tries once more to write what is buffered.
        with suppress(OSError):
            self.release()
        if not keep:
            self._partial.unlink(missing_ok=True)

    def _write(self, data: "memoryview | bytes") -> None:
        with _with_filename(self.path):
            self._opened().write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self._reopened() if self._bytes else self._partial.open("wb")
        return self._file

    def _reopened(self) -> BinaryIO:
        # Not in append mode, which would make a file that is gone anew, without its first rows.
        file = self._partial.open("r+b")
        size = file.seek(0, os.SEEK_END)
        if size != self._bytes:
            file.close()
            raise CacheError(
                f"{self._partial} has {size} bytes, but {self._bytes} were written: another program changed it; run the same "
                "command again"
            )
        return file


def _partial(path: Path, token: str) -> Path:
    return path.with_name(f"{path.name}.{token}{PARTIAL_SUFFIX}")


@contextmanager
def _with_filename(path: Path) -> Iterator[None]:
    """Say in an error of the file system which file it was; writing to an open one does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
