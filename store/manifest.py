"""The manifest: spec, inventory and every file with its size and SHA-256. It is written last, so it means *complete*."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, Any, Self

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, canonical_json, field, read_sealed, sha256_hex, write_sealed
from featcache.store.inventory import Block, Inventory
from featcache.store.regular_files import IS_LINK, NOT_REGULAR
from featcache.store.spec import CacheSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MANIFEST_FILE = "manifest.json"
FORMAT = "featcache"
DIGEST_DIGITS = 16
MAX_BATCH_SIZE = 2**20
_ORIENTATIONS = frozenset("12345678")


@dataclass(frozen=True)
class FileRecord:
    """Size and digest of one file."""

    bytes: int
    sha256: str

    def mismatch(self, path: Path) -> str | None:
        """Return why the file at `path` cannot be the recorded one, by kind and size alone; None if it can."""
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if S_ISLNK(status.st_mode):
            return IS_LINK
        if not S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return NOT_REGULAR
        return None if status.st_size == self.bytes else f"{status.st_size} bytes, must be {self.bytes}"


@dataclass(frozen=True)
class BlockRecord:
    """The commit record of one block: its rows and its files, as paths within features.zarr."""

    block: Block
    files: Mapping[str, FileRecord]
    orientations: str = ""
    """EXIF orientation of the image of every row, a digit from 1 (upright) to 8, where images are turned upright; empty if none
    was turned."""

    def to_dict(self) -> JsonObject:
        """Return the record as plain JSON values."""
        return {
            "split": self.block.split,
            "block": self.block.index,
            "rows": [self.block.start, self.block.stop],
            "files": {path: asdict(record) for path, record in self.files.items()},
            **({"orientations": self.orientations} if self.orientations else {}),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], inventory: Inventory, where: str) -> Self:
        """Read a record back and hold it to the inventory: rows, the very set of files, and their sizes.

        Raises:
            CacheError: a field is missing or does not fit the inventory.
        """
        split_name = field(document, "split", str, where)
        index = field(document, "block", int, where)
        where = f"{where}: block {index} of {split_name!r}"
        split = inventory.splits.get(split_name)
        if split is None or not 0 <= index < split.num_blocks:
            raise CacheError(f"{where}: no such block in the inventory")
        block = split.block(index)
        rows = field(document, "rows", list, where)
        if rows != [block.start, block.stop]:
            raise CacheError(
                f"{where}: field 'rows' is {rows}, the inventory says {[block.start, block.stop]}"
            )
        files = files_from_dict(field(document, "files", dict, where), where)
        sizes = {path: array.chunk_bytes for array, path in split.chunk_files(index)}
        if files.keys() != sizes.keys():
            odd = sorted(files.keys() ^ sizes.keys())
            raise CacheError(f"{where}: field 'files' does not fit the inventory at {odd[0]!r}")
        for path, record in files.items():
            if record.bytes != sizes[path]:
                raise CacheError(
                    f"{where}: file {path!r} is recorded with {record.bytes} bytes, must be {sizes[path]}"
                )
        return cls(block, files, read_orientations(document, block.rows, where))


@dataclass(frozen=True)
class Manifest:
    """Identity and content of a cache. ``blocks`` lacks the blocks that are not committed yet."""

    spec: CacheSpec
    inventory: Inventory
    batch_size: int
    """Samples in a forward pass, so that a block that is redone gets the same bytes."""
    blocks: Sequence[BlockRecord]
    metadata: Mapping[str, FileRecord]
    """The Zarr metadata files."""
    whole: Inventory | None = None
    """Inventory of the whole cache for a partial copy; `inventory` and `blocks` then describe the local part."""

    @property
    def full_inventory(self) -> Inventory:
        """Inventory of the whole cache, which the Zarr metadata describe also in a partial copy."""
        return self.inventory if self.whole is None else self.whole

    def part(self, inventory: Inventory) -> "Manifest":
        """Return the manifest of a copy that holds `inventory` alone, as far as this one has it.

        Raises:
            CacheError: an array is of another form.
        """
        held = self.inventory.common(inventory)
        records = []
        for record in self.blocks:
            split = held.splits.get(record.block.split)
            if split is not None:
                paths = (path for _, path in split.chunk_files(record.block.index))
                files = {path: record.files[path] for path in paths}
                records.append(replace(record, files=files))
        return replace(self, inventory=held, blocks=records, whole=self.inventory)

    def missing_blocks(self) -> list[Block]:
        """Return the blocks of the inventory without a record."""
        committed = {record.block for record in self.blocks}
        return [block for block in self.inventory.blocks() if block not in committed]

    def plus(
        self, inventory: Inventory, blocks: Sequence[BlockRecord], metadata: Mapping[str, FileRecord]
    ) -> "Manifest":
        """Return the manifest of the cache with what was added to it: arrays, their files and the Zarr metadata.

        Raises:
            CacheError: the addition does not fit the cache.
        """
        merged = self.inventory.plus(inventory)
        files = {record.block: dict(record.files) for record in self.blocks}
        orientations = {record.block: record.orientations for record in self.blocks}
        for record in blocks:
            files.setdefault(record.block, {}).update(record.files)
            orientations[record.block] = record.orientations or orientations.get(record.block, "")
        # In the inventory's order, so that it does not matter in what order things were added.
        records = [
            BlockRecord(
                block,
                {path: files[block][path] for _, path in merged.splits[block.split].chunk_files(block.index)},
                orientations[block],
            )
            for block in merged.blocks()
        ]
        return Manifest(self.spec, merged, self.batch_size, records, metadata)

    def orientations(self, split: str) -> "npt.NDArray[np.uint8]":
        """Return the EXIF orientation ``[N]`` by which each image of a split was turned; 1 for images taken as stored."""
        import numpy as np  # commands that only look at manifests go without

        values = np.ones(self.inventory.splits[split].num_samples, np.uint8)
        for record in self.blocks:
            if record.block.split == split and record.orientations:
                digits = np.frombuffer(record.orientations.encode(), np.uint8)
                values[record.block.start : record.block.stop] = digits - ord("0")
        return values

    def write(self, directory: Path) -> None:
        """Write manifest.json: from now on the cache is complete."""
        write_sealed(directory / MANIFEST_FILE, self.to_dict())

    def spec_document(self) -> JsonObject:
        """Return the spec as plain JSON values, with the format version that a reader must know."""
        return self.spec.to_dict() | {"format_version": self.full_inventory.format_version}

    def to_dict(self) -> JsonObject:
        """Return the manifest as plain JSON values, without its digest."""
        return {
            "format": FORMAT,
            "key": self.spec.key,
            "spec": self.spec_document(),
            "inventory": self.inventory.to_dict(),
            "batch_size": self.batch_size,
            "blocks": [record.to_dict() for record in self.blocks],
            "metadata": {path: asdict(record) for path, record in self.metadata.items()},
        }

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read manifest.json.

        Raises:
            FileNotFoundError: there is none, so the cache is not complete.
            CacheError: it is damaged, foreign, or lacks a block.
        """
        path = directory / MANIFEST_FILE
        return cls.from_dict(read_sealed(path), str(path))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str) -> Self:
        """Read a manifest back, without its digest; `where` names the file in errors.

        Raises:
            CacheError: it is foreign, or lacks a block.
        """
        if document.get("format") != FORMAT:
            raise CacheError(
                f"{where}: field 'format' must be {FORMAT!r}, got {str(document.get('format'))[:40]!r}"
            )
        spec = CacheSpec.from_dict(field(document, "spec", dict, where), where)
        if document.get("key") != spec.key:
            raise CacheError(
                f"{where}: field 'key' is {document.get('key')!r}, the spec's digest is {spec.key!r}"
            )
        inventory = read_inventory(document, spec, where)
        records = [
            BlockRecord.from_dict(_object(b, where), inventory, where)
            for b in field(document, "blocks", list, where)
        ]
        manifest = cls(
            spec,
            inventory,
            read_batch_size(document, where),
            records,
            files_from_dict(field(document, "metadata", dict, where), where),
        )
        for block, times in Counter(record.block for record in records).items():
            if times > 1:
                raise CacheError(f"{where}: field 'blocks' has block {block.index} of {block.split!r} twice")
        missing = manifest.missing_blocks()
        if missing:
            raise CacheError(
                f"{where}: field 'blocks' lacks block {missing[0].index} of {missing[0].split!r}"
            )
        return manifest


def manifest_digest(manifest: Manifest) -> str:
    """Return a short digest of all that a manifest says."""
    return sha256_hex(canonical_json(manifest.to_dict()))[:DIGEST_DIGITS]


def read_inventory(
    document: Mapping[str, Any], spec: CacheSpec, where: str, *, whole: bool = True
) -> Inventory:
    """Read the field `inventory` of a manifest or plan, and hold it to the spec and its format version.

    Raises:
        CacheError: a field is missing, of the wrong type, or differs from the spec.
    """
    inventory = Inventory.from_dict(field(document, "inventory", dict, where), where, whole=whole)
    inventory.require_version(field(document, "spec", dict, where), where)
    inventory.require_spec(spec.backbone.width, spec.backbone.num_layers, spec.dtype, where)
    return inventory


def read_batch_size(document: Mapping[str, Any], where: str) -> int:
    """Read the field `batch_size`.

    Raises:
        CacheError: it is missing or out of range.
    """
    batch_size: int = field(document, "batch_size", int, where)
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise CacheError(f"{where}: field 'batch_size' must be from 1 to {MAX_BATCH_SIZE}")
    return batch_size


def read_orientations(document: Mapping[str, Any], rows: int, where: str) -> str:
    """Read the field `orientations` of a record of some rows, a digit for each row; it may be absent.

    Raises:
        CacheError: it is not a digit from 1 to 8 for each row.
    """
    orientations = document.get("orientations", "")
    if orientations == "" or (
        isinstance(orientations, str) and len(orientations) == rows and not set(orientations) - _ORIENTATIONS
    ):
        return str(orientations)
    raise CacheError(f"{where}: field 'orientations' must be {rows} digits from 1 to 8")


def files_from_dict(document: Mapping[str, Any], where: str) -> dict[str, FileRecord]:
    """Read a table of file records.

    Raises:
        CacheError: a field is missing or of the wrong type.
    """
    files = {}
    for path in document:
        record = field(document, path, dict, where)
        size, digest = record.get("bytes"), record.get("sha256")
        if (
            type(size) is not int or type(digest) is not str
        ):  # the long way only where it has something to say
            spot = f"{where}: file {path!r}"
            size, digest = field(record, "bytes", int, spot), field(record, "sha256", str, spot)
        files[path] = FileRecord(size, digest)
    return files


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CacheError(f"{where}: field 'blocks' must hold objects, got {type(value).__name__}")
    return value
