"""The block writer: what is committed survives a kill or a power loss, and what is not does not exist.

Rows are appended to temporary files next to their target, one file per layer. A finished block is padded, synced,
renamed, and only then recorded in the journal. zarr's own local store neither syncs nor tells a missing chunk from
an empty one, so it writes the metadata only.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from featcache.store import journal
from featcache.store.arrays import DTYPES, ArrayInfo
from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.files import (
    PARTIAL_SUFFIX,
    read_json,
    sha256_file,
    sync_directory,
    write_atomic,
    write_sealed,
)
from featcache.store.inventory import Block, SplitInventory
from featcache.store.journal import FEATURES, JOURNAL, Plan
from featcache.store.manifest import MANIFEST_FILE, BlockRecord, FileRecord, Manifest
from featcache.store.zarr_metadata import check_array_metadata, create_metadata, metadata_paths

PROVENANCE_FILE = "provenance.json"
CARD_FILE = "README.md"
LOCK_FILE = "lock"


class CacheWriter:
    """Writes the blocks of one cache; use as a context manager. One process writes a cache at a time.

    Args:
        directory: folder of the cache, made if it does not exist.
        plan: what to write. On resume its spec and inventory must equal those of the plan on disk.

    Raises:
        CacheBusyError: another process is writing this cache, or has just completed it.
        CacheError: the folder holds an unfinished cache with another plan.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        self.directory = directory
        (directory / JOURNAL).mkdir(parents=True, exist_ok=True)
        self._lock = _lock(directory / JOURNAL / LOCK_FILE)
        try:
            if (directory / MANIFEST_FILE).exists():
                raise CacheBusyError(
                    f"{directory}: another process has just completed this cache; run the command again"
                )
            self.plan = self._adopt(plan)
            self._prepare_arrays()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def pending(self) -> list[Block]:
        """Blocks that are not committed yet, in order."""
        committed = {record.block for record in journal.committed(self.directory, self.plan.inventory)}
        return [block for block in self.plan.inventory.blocks() if block not in committed]

    @contextmanager
    def block(self, block: Block) -> Iterator["BlockWriter"]:
        """Write one block: append its rows inside the ``with``; leaving it without an error commits the block."""
        writer = BlockWriter(self.directory / FEATURES, self.plan.inventory.splits[block.split], block)
        try:
            yield writer
            record = writer.finish()
        except BaseException:
            writer.discard()
            raise
        journal.commit(self.directory, record)

    def finish(self, provenance: Mapping[str, Any], card: str) -> Manifest:
        """Make the cache complete: provenance and card first, the manifest last, then the journal goes.

        Raises:
            CacheError: a block is missing.
        """
        features = self.directory / FEATURES
        metadata = {
            path: FileRecord((features / path).stat().st_size, sha256_file(features / path))
            for path in metadata_paths(self.plan.inventory)
        }
        records = journal.committed(self.directory, self.plan.inventory)
        manifest = Manifest(self.plan.spec, self.plan.inventory, self.plan.batch_size, records, metadata)
        missing = manifest.missing_blocks()
        if missing:
            raise CacheError(f"{self.directory}: {len(missing)} blocks are not written yet")
        write_sealed(self.directory / PROVENANCE_FILE, provenance)
        write_atomic(self.directory / CARD_FILE, card.encode())
        manifest.write(self.directory)
        shutil.rmtree(self.directory / JOURNAL)
        return manifest

    def _adopt(self, plan: Plan) -> Plan:
        try:
            earlier = Plan.read(self.directory)
        except FileNotFoundError:
            plan.write(self.directory)
            sync_directory(self.directory)
            sync_directory(self.directory.parent)
            return plan
        if earlier.spec != plan.spec or earlier.inventory != plan.inventory:
            raise CacheError(
                f"{self.directory} holds an unfinished cache with another plan; remove the folder to start anew"
            )
        return earlier

    def _prepare_arrays(self) -> None:
        features = self.directory / FEATURES
        splits = self.plan.inventory.splits.values()
        for split in splits:
            for array in split.arrays.values():
                (features / split.name / array.name).mkdir(parents=True, exist_ok=True)
        if not all((features / path).is_file() for path in metadata_paths(self.plan.inventory)):
            self._create_metadata(features)
        for split in splits:
            for array in split.arrays.values():
                folder = features / split.name / array.name
                check_array_metadata(folder / "zarr.json", array)
                for leftover in folder.glob(f"*{PARTIAL_SUFFIX}"):
                    leftover.unlink()
        journal.drop_invalid_records(self.directory, self.plan.inventory)

    def _create_metadata(self, features: Path) -> None:
        scratch = self.directory / JOURNAL / "zarr-metadata"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        create_metadata(scratch, self.plan.inventory)
        for path in metadata_paths(self.plan.inventory):
            # zarr's order of keys can follow the file system; sorted, the bytes depend on content alone.
            document = json.dumps(read_json(scratch / path), indent=2, sort_keys=True)
            write_atomic(features / path, document.encode())
        shutil.rmtree(scratch)
        for split in self.plan.inventory.splits:
            sync_directory(features / split)
        sync_directory(features)


class BlockWriter:
    """Collects the rows of one block in temporary files."""

    def __init__(self, features: Path, split: SplitInventory, block: Block) -> None:
        self._split = split
        self._block = block
        self._rows = 0
        self._files: dict[str, list[_ChunkFile]] = {}
        for array in split.arrays.values():
            folder = features / split.name / array.name
            self._files[array.name] = [
                _ChunkFile(folder / name, array) for name in array.chunk_names(block.index)
            ]

    def append(self, batch: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Append the next rows to every array of the split.

        Args:
            batch: per array name the rows as ``[B, L, K, D]`` (arrays with layers) or ``[B, ...]``, in the stored type.

        Raises:
            ValueError: an array is missing, unknown, of the wrong shape or type, or the block is full.
        """
        if batch.keys() != self._split.arrays.keys():
            raise ValueError(f"a batch must hold {sorted(self._split.arrays)}, got {sorted(batch)}")
        rows = len(batch["label"])
        if self._rows + rows > self._block.rows:
            raise ValueError(f"the block has {self._block.rows} rows, {self._rows + rows} were appended")
        for name, values in batch.items():
            array = self._split.arrays[name]
            array.check_rows(values, rows)
            for index, file in enumerate(self._files[name]):
                file.append(values[:, index] if array.layers else values)
        self._rows += rows

    def finish(self) -> BlockRecord:
        """Pad, sync and rename all files of the block, and return its commit record.

        Raises:
            ValueError: rows are missing.
        """
        if self._rows != self._block.rows:
            raise ValueError(f"the block has {self._block.rows} rows, only {self._rows} were appended")
        files = {}
        for array in self._split.arrays.values():
            for file in self._files[array.name]:
                files[f"{self._split.name}/{array.name}/{file.path.name}"] = file.finish()
            sync_directory(self._files[array.name][0].path.parent)
        return BlockRecord(self._block, files)

    def discard(self) -> None:
        """Remove the temporary files."""
        for files in self._files.values():
            for file in files:
                file.discard()


class _ChunkFile:
    """One chunk file under way: hashed while it is written, so that no byte is read again."""

    def __init__(self, path: Path, array: ArrayInfo) -> None:
        self.path = path
        self._array = array
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._file = self._partial.open("wb")
        self._digest = hashlib.sha256()
        self._bytes = 0

    def append(self, values: npt.NDArray[np.generic]) -> None:
        self._write(np.ascontiguousarray(values).data.cast("B") if values.size else b"")

    def finish(self) -> FileRecord:
        fill = DTYPES[self._array.dtype].fill_bytes
        self._write(fill * ((self._array.chunk_bytes - self._bytes) // len(fill)))
        with _naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self.path)
        return FileRecord(self._bytes, self._digest.hexdigest())

    def discard(self) -> None:
        # On a full disk closing fails too: it tries once more to write what is buffered.
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, data: "memoryview | bytes") -> None:
        with _naming(self.path):
            self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in an error of the file system which file it was; writing to an open one does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _lock(path: Path) -> BinaryIO:
    file = path.open("ab")
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system: the user keeps writers apart
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CacheBusyError(
            f"{path.parent.parent}: another process is writing this cache; wait for it or stop it"
        ) from None
    return file
