"""The cache writer: what is committed survives a kill or a power loss, and what is not does not exist.

A finished block is padded, synced, renamed, and only then recorded in the journal. Several processes may write one
cache: they divide its blocks by claims. zarr's own local store neither syncs nor tells a missing chunk from an empty
one, so it writes the metadata only.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featcache.store import journal
from featcache.store.errors import CacheCompletedError, CacheError
from featcache.store.files import (
    PARTIAL_SUFFIX,
    read_sealed,
    sha256_hex,
    sync_directory,
    temporary_for,
    write_atomic,
    write_sealed,
)
from featcache.store.inventory import Block
from featcache.store.journal import FEATURES, JOURNAL, Plan
from featcache.store.manifest import Manifest
from featcache.store.partial_copy import forget_copy, require_complete_copy
from featcache.store.provenance import CARD_DIGEST, PROVENANCE_FILE
from featcache.store.quantization import Scales
from featcache.store.reading.scales import load_scales
from featcache.store.regular_files import read_regular
from featcache.store.shared_card import CARD_FILE
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.claims import SETUP, Claims
from featcache.store.writing.manifest_file import ManifestFile
from featcache.store.writing.metadata import metadata_records, write_metadata
from featcache.store.writing.scale_files import Fit, require_scales, with_scales
from featcache.store.zarr_metadata import PROJECTION_CHUNK, group_metadata_paths, metadata_documents

"""Field of provenance.json with the SHA-256 of the card."""
ADDITIONS = "additions"
"""Field of provenance.json with the provenance of what was added later."""
CHECKPOINT_S = 20.0
WAIT_S = 0.5
FINISH = "finish"
THREADS = 8
"""That hash and write, as many as there are cores, and that wait for the disk, which takes several files at a time."""


class CacheWriter:
    """Writes the blocks of one cache, together with any other process that does; use as a context manager.

    A cache that is complete can be added to: what it holds of the plan already is left out, and it stays complete
    and as it was for its readers until the addition is finished.

    Args:
        directory: folder of the cache, made if it does not exist.
        plan: what the cache is to hold. To a complete cache goes what it lacks of this, with the cache's own batch size.
        projection: the matrix ``[D, E]`` float32 that `plan` speaks of.
        fit: fits the scales of int8 arrays that are new. One process does it before it writes the plan, while others wait.
        adopt: take up an unfinished run of another plan in this folder, rather than refuse; see `plan`.
        checkpoint_s: seconds of work that a kill may cost inside a block.
        say: receives a line when the writer waits for another process, at its start or its end.

    Raises:
        CacheCompletedError: the cache holds all that is planned, perhaps since a moment ago.
        CacheError: the folder holds an unfinished cache with another plan.
    """

    plan: Plan
    """What is being written."""
    scales: Mapping[str, Scales]
    """Scales of the int8 arrays that are written, by the array's name."""

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        *,
        projection: npt.NDArray[np.float32] | None = None,
        fit: Fit | None = None,
        adopt: bool = False,
        checkpoint_s: float = CHECKPOINT_S,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.directory = directory
        self.plan = plan
        self._checkpoint_s = checkpoint_s
        self._say = say
        self._projection = projection
        self._fit = fit
        self._manifest = ManifestFile(directory)
        require_complete_copy(directory, "added to")
        (directory / JOURNAL).mkdir(parents=True, exist_ok=True)
        self._claims = Claims(directory / JOURNAL)
        self._threads = ThreadPoolExecutor(THREADS, "featcache-write")
        self._open: dict[Block, BlockWriter] = {}
        self._committed: set[Block] = set()
        self._ready: BlockWriter | None = None
        try:
            if not self._enter() or self.complete:
                raise CacheCompletedError(f"{directory} is complete already; nothing is left to write")
            self.plan = self._adopt(plan, adopt)
            self._prepare_arrays()
            self.scales = self._load_scales()
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

    def _enter(self) -> bool:
        """Begin as the only process that does; False if there is nothing left to begin."""
        while True:
            try:
                return self._claims.wait(SETUP, until=lambda: self.complete, say=self._say)
            except FileNotFoundError:  # whoever completed the cache has just taken the journal away
                (self.directory / JOURNAL).mkdir(exist_ok=True)

    def _leave(self) -> None:
        for writer in self._open.values():
            writer.close()
        self._claims.release(SETUP)
        with suppress(OSError, CacheError):  # the journal of a complete cache is a leftover that does no harm
            if self.complete and self._claims.acquire(SETUP):
                self._remove_journal()
        self._claims.close()
        self._threads.shutdown()

    def _remove_journal(self) -> None:
        """Take the journal of a complete cache away, unless another process has begun an addition in it."""
        folder = self.directory / JOURNAL
        if self._earlier_plan() is None:
            if journal.foreign_names(folder):  # foreign files stay in place
                journal.clear(folder)
            else:
                # Renaming is one step, so a process that starts now writes to a new journal.
                folder.rename(self.directory / f"{JOURNAL}.{self._claims.token}{PARTIAL_SUFFIX}")
        for aside in self.directory.glob(f"{JOURNAL}.*{PARTIAL_SUFFIX}"):
            if journal.is_set_aside(aside.name):
                journal.clear(aside)

    @property
    def complete(self) -> bool:
        """Whether the cache holds all that is planned, written by this process or another."""
        held = self._manifest.read()
        return held is not None and held.inventory.covers(self.plan.inventory)

    def pending(self) -> list[Block]:
        """Blocks that are not committed yet, in order, claimed or not."""
        # What is committed stays so: its record is read once, not again for every block that follows.
        news = journal.committed(self.directory, self.plan.inventory, self._committed)
        self._committed.update(record.block for record in news)
        # A process that completes the cache removes the journal: asked last, so that it is not taken for empty.
        return [] if self.complete else [b for b in self.plan.inventory.blocks() if b not in self._committed]

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
                features, split, block, self._claims.token, progress, self._checkpoint_s, self._threads
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
        journal.commit(self.directory, writer.finish(), writer.reused)
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

        What is added to a complete cache leaves its card, and its provenance goes behind that of the cache. Where several processes get here, one does it and the others wait for it.

        Raises:
            CacheError: a block is missing.
        """
        if not self._claims.wait(FINISH, until=lambda: self.complete, say=self._say) or self.complete:
            return
        held = self._manifest.read()
        documents = self._metadata(held)
        manifest = self._merge(held, documents)
        self._sweep()
        # What a cache was made from stays first, and so does its card.
        earlier = read_sealed(self.directory / PROVENANCE_FILE) if held else {}
        if held is None:
            # The card seals nothing itself, so provenance.json vouches for it.
            document = {**provenance, CARD_DIGEST: sha256_hex(card.encode())}
            write_atomic(self.directory / CARD_FILE, card.encode())
        else:
            document = {**earlier, ADDITIONS: [*earlier.get(ADDITIONS, []), dict(provenance)]}
        write_sealed(self.directory / PROVENANCE_FILE, document)
        write_metadata(self.directory / FEATURES, documents, group_metadata_paths(manifest.inventory))
        manifest.write(self.directory)

    def _metadata(self, held: Manifest | None) -> dict[str, bytes]:
        whole = held.inventory.plus(self.plan.inventory) if held else self.plan.inventory
        documents = metadata_documents(whole)
        array = self.plan.inventory.projection_array
        if array is not None:
            if self._projection is None:
                raise ValueError("the plan has a projection, but none is given")
            array.check_rows(self._projection, array.shape[0])
            documents[PROJECTION_CHUNK] = self._projection.tobytes()
        for path, record in self.plan.scales.items():
            documents[path] = read_regular(self.directory / FEATURES / path, record.bytes)
        return documents

    def _merge(self, held: Manifest | None, documents: Mapping[str, bytes]) -> Manifest:
        """The manifest of the cache with all that is planned."""
        records = journal.committed(self.directory, self.plan.inventory)
        lacking = len(self.plan.inventory.blocks()) - len(records)
        if lacking:
            raise CacheError(f"{self.directory}: {lacking} blocks are not written yet")
        base = held or Manifest(
            self.plan.spec, replace(self.plan.inventory, splits={}), self.plan.batch_size, (), {}
        )
        metadata = metadata_records(documents, base.metadata, base.inventory.plus(self.plan.inventory))
        return base.plus(self.plan.inventory, records, metadata)

    def _adopt(self, plan: Plan, adopt: bool) -> Plan:
        """The plan to follow: that of an unfinished run, or what the cache lacks of `plan`."""
        held, earlier = self._manifest.read(), self._earlier_plan()
        features = self.directory / FEATURES
        if earlier is None:
            if held is not None:
                plan = replace(
                    plan, inventory=plan.inventory.minus(held.inventory), batch_size=held.batch_size
                )
            else:
                plan.inventory.require_columns("the plan")
                forget_copy(self.directory)  # notes of an interrupted pull into the same folder
            known = held.metadata if held else {}
            plan = with_scales(features, plan, known, self._fit)
            require_scales(features, plan, known, self._fit)
            plan.write(self.directory)
            sync_directory(self.directory)
            sync_directory(self.directory.parent)
            return plan
        wanted = plan.inventory.minus(held.inventory) if held else plan.inventory
        if earlier.spec != plan.spec or not (adopt or earlier.inventory == wanted):
            raise CacheError(
                f"{self.directory} holds an unfinished cache with another plan; remove the folder to start anew"
            )
        require_scales(features, earlier, held.metadata if held else {}, self._fit)
        return earlier

    def _earlier_plan(self) -> Plan | None:
        """The plan of an unfinished run. The journal of one that was finished and then killed is emptied."""
        try:
            earlier = Plan.read(self.directory)
        except FileNotFoundError:
            return None
        held = self._manifest.read()
        if held is None or not held.inventory.covers(earlier.inventory):
            return earlier
        journal.drop_records(self.directory / JOURNAL)
        return None

    def _prepare_arrays(self) -> None:
        held, features = self._manifest.read(), self.directory / FEATURES
        folders = [features]
        for split in self.plan.inventory.splits.values():
            folders += [features / split.name, *(features / split.name / array for array in split.arrays)]
        folders += [features / array.name for array in self.plan.inventory.arrays_beside_splits]
        # One by one: with all their parents they would be made again where a disk was unmounted in the meantime.
        for folder in folders:
            folder.mkdir(exist_ok=True)
        documents = self._metadata(held)
        # Groups copy what their members say, so those of a complete cache are changed when the addition is finished.
        paths = documents.keys() if held is None else documents.keys() - held.metadata.keys()
        groups = set(group_metadata_paths(held.inventory)) if held else set()
        write_metadata(features, documents, sorted(paths - groups))

    def _load_scales(self) -> dict[str, Scales]:
        features = self.directory / FEATURES
        return {name: load_scales(features, array) for name, array in self.plan.inventory.int8_arrays.items()}

    def _sweep(self) -> None:
        """Remove what processes left that died between their last checkpoint and now."""
        for split in self.plan.inventory.splits.values():
            for array in split.arrays.values():
                folder = self.directory / FEATURES / split.name / array.name
                names = {name for block in split.blocks() for name in array.chunk_names(block.index)}
                for leftover in folder.glob(f"*{PARTIAL_SUFFIX}"):
                    if temporary_for(leftover.name) in names:
                        leftover.unlink(missing_ok=True)


def _name(block: Block) -> str:
    return f"{block.split}.{block.index:05d}"
