"""The cache writer: what is committed survives a kill or a power loss, and what is not does not exist.

A finished block is padded, synced, renamed, and only then recorded in the journal. Several processes may write one
cache: they divide its blocks by claims. zarr's own local store neither syncs nor tells a missing chunk from an empty
one, so it writes the metadata only.
"""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from featcache.store import journal
from featcache.store.errors import CacheCompletedError, CacheError
from featcache.store.files import (
    PARTIAL_SUFFIX,
    read_json,
    sha256_file,
    sha256_hex,
    sync_directory,
    write_atomic,
    write_sealed,
)
from featcache.store.inventory import Block
from featcache.store.journal import FEATURES, JOURNAL, Plan
from featcache.store.manifest import MANIFEST_FILE, FileRecord, Manifest
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.claims import SETUP, Claims
from featcache.store.zarr_metadata import create_metadata, metadata_paths

PROVENANCE_FILE = "provenance.json"
CARD_FILE = "README.md"
CARD_DIGEST = "card_sha256"
"""Field of provenance.json with the SHA-256 of the card."""
CHECKPOINT_S = 20.0
WAIT_S = 0.5
FINISH = "finish"


class CacheWriter:
    """Writes the blocks of one cache, together with any other process that does; use as a context manager.

    Args:
        directory: folder of the cache, made if it does not exist.
        plan: what to write. On resume its spec and inventory must equal those of the plan on disk.
        checkpoint_s: seconds of work that a kill may cost inside a block.

    Raises:
        CacheCompletedError: the cache is complete, perhaps since a moment ago.
        CacheError: the folder holds an unfinished cache with another plan.
    """

    def __init__(self, directory: Path, plan: Plan, *, checkpoint_s: float = CHECKPOINT_S) -> None:
        self.directory = directory
        self._checkpoint_s = checkpoint_s
        (directory / JOURNAL).mkdir(parents=True, exist_ok=True)
        self._claims = Claims(directory / JOURNAL)
        self._open: dict[Block, BlockWriter] = {}
        self._ready: BlockWriter | None = None
        try:
            if not self._claims.wait(SETUP, until=lambda: self.complete) or self.complete:
                raise CacheCompletedError(f"{directory} is complete already; nothing is left to write")
            self.plan = self._adopt(plan)
            self._prepare_arrays()
            self._claims.release(SETUP)
        except BaseException:
            self._leave()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        for writer in self._open.values():
            writer.close()
        self._claims.close()
        if self.complete:
            # Whoever leaves last takes the journal along: it may have been written to while another removed it.
            shutil.rmtree(self.directory / JOURNAL, ignore_errors=True)

    @property
    def complete(self) -> bool:
        """Whether the manifest is written, by this process or another."""
        return (self.directory / MANIFEST_FILE).exists()

    def pending(self) -> list[Block]:
        """Blocks that are not committed yet, in order, claimed or not."""
        committed = {record.block for record in journal.committed(self.directory, self.plan.inventory)}
        # A process that completes the cache removes the journal: asked last, so that it is not taken for empty.
        return [] if self.complete else [b for b in self.plan.inventory.blocks() if b not in committed]

    def committed_rows(self) -> int:
        """Rows of all splits that are committed, by this process or another."""
        return self.plan.inventory.num_samples - sum(block.rows for block in self.pending())

    def claim(self) -> BlockWriter | None:
        """Open the next block that nobody is writing, where an earlier process left it; None if there is none now.

        Blocks that are claimed and not committed end without a trace when the writer is left.
        """
        if self._ready is not None:
            ready, self._ready = self._ready, None
            return ready
        for block in self.pending():
            if block in self._open or not self._claims.wait(_name(block), until=lambda: True):
                continue
            if journal.is_committed(self.directory, self.plan.inventory, block):
                self._claims.release(_name(block))  # by another process, in the meantime
                continue
            split = self.plan.inventory.splits[block.split]
            progress = journal.progress_path(self.directory, block)
            features = self.directory / FEATURES
            self._open[block] = BlockWriter(
                features, split, block, self._claims.token, progress, self._checkpoint_s
            )
            return self._open[block]
        return None

    def commit(self, writer: BlockWriter) -> None:
        """Make a block exist that `claim` opened and that is full by now.

        Raises:
            ValueError: rows are missing.
            CacheError: the claim was lost to another process, because this one stood still for too long.
        """
        block = writer.block
        if not self._claims.holds(_name(block)):
            raise CacheError(
                f"{self.directory}: another process took over block {block.index} of {block.split!r}"
            )
        journal.commit(self.directory, writer.finish())
        del self._open[block]
        self._claims.release(_name(block))

    def wait(self) -> bool:
        """Wait for the blocks that other processes write; True if `claim` has one because its process is gone."""
        while not self.complete and self.pending():
            self._ready = self.claim()
            if self._ready is not None:
                return True
            time.sleep(WAIT_S)
        return False

    def finish(self, provenance: Mapping[str, Any], card: str) -> None:
        """Make the cache complete: provenance and card first, the manifest last, then the journal goes.

        Where several processes get here, one does it and the others wait for it.

        Raises:
            CacheError: a block is missing.
        """
        if not self._claims.wait(FINISH, until=lambda: self.complete) or self.complete:
            return
        manifest = self._manifest()
        self._sweep()
        # The card seals nothing itself, so provenance.json vouches for it.
        sealed = {**provenance, CARD_DIGEST: sha256_hex(card.encode())}
        write_sealed(self.directory / PROVENANCE_FILE, sealed)
        write_atomic(self.directory / CARD_FILE, card.encode())
        manifest.write(self.directory)

    def _manifest(self) -> Manifest:
        features, inventory = self.directory / FEATURES, self.plan.inventory
        metadata = {
            path: FileRecord((features / path).stat().st_size, sha256_file(features / path))
            for path in metadata_paths(inventory)
        }
        records = journal.committed(self.directory, inventory)
        manifest = Manifest(self.plan.spec, inventory, self.plan.batch_size, records, metadata)
        missing = manifest.missing_blocks()
        if missing:
            raise CacheError(f"{self.directory}: {len(missing)} blocks are not written yet")
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
        for split in self.plan.inventory.splits.values():
            for array in split.arrays.values():
                (features / split.name / array.name).mkdir(parents=True, exist_ok=True)
        self._create_metadata(features)

    def _create_metadata(self, features: Path) -> None:
        scratch = self.directory / JOURNAL / "zarr-metadata"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        create_metadata(scratch, self.plan.inventory)
        for path in metadata_paths(self.plan.inventory):
            # zarr's order of keys can follow the file system; sorted, the bytes depend on content alone.
            document = json.dumps(read_json(scratch / path), indent=2, sort_keys=True).encode()
            # On resume too: what was damaged in the meantime must not be sealed into the manifest.
            if not (features / path).is_file() or (features / path).read_bytes() != document:
                write_atomic(features / path, document)
        shutil.rmtree(scratch)
        for split in self.plan.inventory.splits:
            sync_directory(features / split)
        sync_directory(features)

    def _sweep(self) -> None:
        """Remove what processes left that died between their last checkpoint and now."""
        for split in self.plan.inventory.splits.values():
            for array in split.arrays.values():
                for leftover in (self.directory / FEATURES / split.name / array.name).glob(
                    f"*{PARTIAL_SUFFIX}"
                ):
                    leftover.unlink(missing_ok=True)


def _name(block: Block) -> str:
    return f"{block.split}.{block.index:05d}"
