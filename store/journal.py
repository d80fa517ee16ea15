"""The journal of an unfinished extraction: the plan and one commit record per finished block.

It exists only while a cache is incomplete; the manifest replaces it.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Self

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field, read_sealed, sync_directory, write_sealed
from featcache.store.inventory import Block, Inventory
from featcache.store.manifest import (
    BlockRecord,
    FileRecord,
    files_from_dict,
    read_batch_size,
    read_inventory,
)
from featcache.store.quantization import scale_chunks
from featcache.store.spec import CacheSpec

FEATURES = "features.zarr"
JOURNAL = "journal"
PLAN_FILE = "plan.json"
SCRATCH = "zarr-metadata"
"""The only folder in a journal: an earlier version left it if its writer was killed at the start."""
_TEMPORARY = r"(\.[0-9a-f]{12})?\.partial"
_ASIDE = re.compile(rf"{JOURNAL}\.[0-9a-f]{{12}}\.partial")
_OWN_FILES = re.compile(
    rf"(plan\.json|[^/]+\.\d{{5,}}(\.progress)?\.json)({_TEMPORARY})?"
    r"|[^/]+\.claim(\.[0-9a-f]{12})?|clock-[0-9a-f]{12}"
)


@dataclass(frozen=True)
class Plan:
    """Plan of the data that an extraction writes, fixed when it starts and kept when it is resumed."""

    spec: CacheSpec
    inventory: Inventory
    """All of a new cache, or what is added to one that is complete: splits, arrays, layers."""
    batch_size: int
    """Samples in a forward pass: a resumed run takes the same, so that its bytes are the same."""
    scales: Mapping[str, FileRecord] = dataclass_field(default_factory=dict)
    """Files of the scales and offsets of int8 arrays, by path within features.zarr: every process and every resumed run takes these.
    Those of arrays that a complete cache holds already are in its manifest instead."""

    def write(self, directory: Path) -> None:
        """Write the plan of the cache at `directory`."""
        document = {
            "spec": self.spec.to_dict() | {"format_version": self.inventory.format_version},
            "inventory": self.inventory.to_dict(),
            "batch_size": self.batch_size,
        }
        if self.scales:
            document["scales"] = {path: asdict(record) for path, record in self.scales.items()}
        write_sealed(directory / JOURNAL / PLAN_FILE, document)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the plan of the cache at `directory`.

        Raises:
            FileNotFoundError: no extraction was started here, or it is complete.
            CacheError: the plan is damaged.
        """
        path = directory / JOURNAL / PLAN_FILE
        document, where = read_sealed(path), str(path)
        spec = CacheSpec.from_dict(field(document, "spec", dict, where), where)
        inventory = read_inventory(document, spec, where, whole=False)
        return cls(
            spec, inventory, read_batch_size(document, where), _read_scales(document, inventory, where)
        )


def _read_scales(document: JsonObject, inventory: Inventory, where: str) -> dict[str, FileRecord]:
    """Read the field `scales`, and hold it to the inventory: its paths are going to be opened."""
    if "scales" not in document:
        return {}
    records = files_from_dict(field(document, "scales", dict, where), where)
    chunks = scale_chunks(inventory.scale_arrays)
    for path, record in records.items():
        if path not in chunks or record.bytes != chunks[path].chunk_bytes:
            raise CacheError(f"{where}: field 'scales' does not fit the inventory at {path!r}")
    return records


def commit(directory: Path, record: BlockRecord, reused: Mapping[str, int] | None = None) -> None:
    """Make a block exist: its files must already be durable under their final names.

    Args:
        directory: folder of the cache.
        record: the block and its files.
        reused: number of its rows that were taken over from other caches, by cache. The journal alone keeps this: the manifest
            depends on the values, and not on where they came from.
    """
    document = record.to_dict() | ({"reused": dict(reused)} if reused else {})
    write_sealed(_record_path(directory, record.block), document)
    progress_path(directory, record.block).unlink(missing_ok=True)


def committed(directory: Path, inventory: Inventory, known: Collection[Block] = ()) -> list[BlockRecord]:
    """Return the records of the blocks that exist, in the inventory's order; a record that does not hold is passed over.

    Args:
        directory: folder of the cache.
        inventory: what is written.
        known: blocks to leave out.
    """
    names = set(os.listdir(directory / JOURNAL)) if (directory / JOURNAL).is_dir() else set()
    blocks = [
        block
        for block in inventory.blocks()
        if block not in known and _record_path(directory, block).name in names
    ]
    return [record for block in blocks if (record := _read(directory, inventory, block)) is not None]


def reused_rows(directory: Path, inventory: Inventory) -> dict[str, int]:
    """Return the number of committed rows that were taken over from other caches, by cache, as given to `commit`."""
    total: Counter[str] = Counter()
    for block in inventory.blocks():
        with suppress(FileNotFoundError, CacheError):
            reused = read_sealed(_record_path(directory, block)).get("reused", {})
            if isinstance(reused, dict) and all(type(count) is int for count in reused.values()):
                total.update(reused)
    return dict(total)


def drop(directory: Path, blocks: Collection[Block]) -> None:
    """Drop the records of blocks; the files of the blocks are overwritten when the blocks are extracted again."""
    for block in blocks:
        _record_path(directory, block).unlink(missing_ok=True)
    sync_directory(directory / JOURNAL)


def is_committed(directory: Path, inventory: Inventory, block: Block) -> bool:
    """Return whether one block exists."""
    return _read(directory, inventory, block) is not None


def progress_path(directory: Path, block: Block) -> Path:
    """Return the path of the checkpoints of a block."""
    return directory / JOURNAL / f"{block.split}.{block.index:05d}.progress.json"


def _record_path(directory: Path, block: Block) -> Path:
    return directory / JOURNAL / f"{block.split}.{block.index:05d}.json"


def _read(directory: Path, inventory: Inventory, block: Block) -> BlockRecord | None:
    path = _record_path(directory, block)
    try:
        record = BlockRecord.from_dict(read_sealed(path), inventory, str(path))
    except (FileNotFoundError, CacheError):
        return None
    return record if record.block == block and _files_hold(directory, record) else None


def _files_hold(directory: Path, record: BlockRecord) -> bool:
    return not any(file.mismatch(directory / FEATURES / path) for path, file in record.files.items())


def is_set_aside(name: str) -> bool:
    """Return whether a folder of this name is a journal that was moved aside for removal."""
    return _ASIDE.fullmatch(name) is not None


def is_own_name(name: str) -> bool:
    """Return whether a file of this name in a journal is ours."""
    return _OWN_FILES.fullmatch(name) is not None


def foreign_names(folder: Path) -> list[str]:
    """Return the names in the journal `folder` that no writer of this version gives, sorted."""
    with os.scandir(folder) as items:
        return sorted(item.name for item in items if not _is_own(item))


def drop_records(folder: Path) -> None:
    """Remove the plan, the commit records and the checkpoints of a journal; claims stay, since other processes may hold them."""
    with os.scandir(folder) as items:
        own = [item.name for item in items if _is_own(item) and ".json" in item.name]
    for name in own:
        (folder / name).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove the files of a journal, and its folder unless foreign files are left in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with os.scandir(folder) as items:
        own = [item for item in items if _is_own(item)]
    for item in own:
        # Another process may be clearing it too.
        if item.is_dir(follow_symlinks=False):
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            Path(item.path).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _is_own(item: "os.DirEntry[str]") -> bool:
    if item.is_dir(follow_symlinks=False):
        return item.name == SCRATCH
    return is_own_name(item.name)
