"""`featcache verify --repair`: drop what is damaged, so that the next extraction redoes only that.

Killed at any point, the cache is either still the complete one with its damages, or a valid unfinished one: the
journal with the records of the intact blocks is whole before the manifest goes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.store import journal
from featcache.store.checking.addition import unfinished_addition
from featcache.store.checking.damage import Damage, FileRole
from featcache.store.checking.documents import read_inventory
from featcache.store.checking.reopen import write_journal
from featcache.store.checking.verify import Verification
from featcache.store.errors import CacheBusyError, CacheError, PartialCacheError
from featcache.store.files import JsonObject, read_sealed, sha256_hex, sync_directory, write_sealed
from featcache.store.inventory import Block
from featcache.store.journal import FEATURES, JOURNAL, SCRATCH
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.partial_copy import check_command
from featcache.store.regular_files import IS_LINK, irregularity
from featcache.store.shared_card import card_origin
from featcache.store.writing.claims import sole_owner
from featcache.store.writing.metadata import write_metadata
from featcache.store.zarr_metadata import metadata_documents

_NEEDS_EXTRACTION = (FileRole.DATA, FileRole.METADATA, FileRole.DOCUMENT)
_REMOVED = (FileRole.DATA, FileRole.REQUEST, FileRole.STALE)


@dataclass(frozen=True)
class RepairResult:
    """State of a cache after a repair."""

    complete: bool
    """Whether the cache still is complete; if not, the same extraction has to be run again."""
    dropped: Sequence[Block]
    """Blocks that the next extraction has to do."""
    unexpected_files: Sequence[str]
    """Files that are not ours, left where they are."""

    @property
    def whole(self) -> bool:
        """Whether nothing is left to do."""
        return self.complete and not self.unexpected_files

    @property
    def samples(self) -> int:
        """Samples that the next extraction has to do."""
        return sum(block.rows for block in self.dropped)

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values."""
        return {
            "complete": self.complete,
            "dropped_blocks": [[block.split, block.index] for block in self.dropped],
            "samples_to_extract": self.samples,
            "strangers": list(self.unexpected_files),
        }


def repair(verification: Verification) -> RepairResult:
    """Repair the damages that `verify` found, as far as possible without the backbone.

    A damaged block is dropped; a damaged zarr.json is written again; a damaged provenance.json or README.md leaves all
    blocks but needs the next extraction too, which writes it again. Unexpected files stay.

    Raises:
        CacheError: the manifest (or the plan) is damaged, a folder stands in place of a file, an addition to the cache is
            unfinished, or the cache is a copy whose origin has the missing files.
        CacheBusyError: another process is at work on the cache, or has changed it since it was verified.
    """
    directory, manifest = verification.directory, verification.manifest
    if manifest is None:
        raise CacheError(f"{directory} cannot be repaired: {verification.damages[0]}; {verification.remedy}")
    _refuse_irregular_files(verification)
    if manifest.whole is not None and any(d.location.role in _NEEDS_EXTRACTION for d in verification.damages):
        raise PartialCacheError(
            f"{directory} is a partial copy and cannot be repaired here; {verification.remedy}"
        )
    if verification.complete and unfinished_addition(directory, manifest) is not None:
        raise CacheError(
            f"{directory} is being added to: finish that extraction first, or drop it with `featcache gc --older-than 0`"
        )
    (directory / JOURNAL).mkdir(exist_ok=True)
    with sole_owner(directory / JOURNAL):
        if read_inventory(directory)[:2] != (verification.complete, manifest):
            raise CacheBusyError(f"{directory} has changed since it was verified; run the command again")
        damages = [damage for damage in verification.damages if damage.location.path != JOURNAL]
        for path in (directory / d.location.path for d in damages if d.location.role == FileRole.FORM):
            write_sealed(path, read_sealed(path))
        if verification.complete:
            damages = _rewrite_metadata(directory, manifest, damages)
        reopened = verification.complete and any(
            damage.location.role in _NEEDS_EXTRACTION for damage in damages
        )
        if reopened:
            _refuse_copy(directory)
            write_journal(directory, manifest, _damaged_blocks(damages))
        # Before the manifest goes: the next writer makes a zarr.json that is missing, but would take a damaged one over.
        _remove(directory, damages, (FileRole.METADATA,))
        if reopened:
            (directory / MANIFEST_FILE).unlink()
            sync_directory(directory)
        _remove(directory, damages, _REMOVED)
        complete = verification.complete and not reopened
        if complete:
            journal.clear(directory / JOURNAL)
    left = [
        damage.location.printable_path for damage in damages if damage.location.role == FileRole.UNEXPECTED
    ]
    dropped = _damaged_blocks(damages)
    return RepairResult(
        complete, [*dropped, *(b for b in verification.missing_blocks if b not in dropped)], left
    )


def _rewrite_metadata(directory: Path, manifest: Manifest, damages: Sequence[Damage]) -> list[Damage]:
    """Rewrite damaged Zarr metadata if the inventory gives the recorded bytes; return the other damages.

    So a cache without other damage stays complete. If another version of Zarr writes other bytes, the next extraction
    rewrites them.
    """
    kinds = {damage.location.role for damage in damages}
    if FileRole.METADATA not in kinds:
        return list(damages)
    made = metadata_documents(manifest.full_inventory)
    left = []
    for damage in damages:
        path = damage.location.path.removeprefix(f"{FEATURES}/")
        record, document = manifest.metadata.get(path), made.get(path)
        if (
            damage.location.role != FileRole.METADATA
            or record is None
            or document is None
            or not (directory / damage.location.path).parent.is_dir()
            or (len(document), sha256_hex(document)) != (record.bytes, record.sha256)
        ):
            left.append(damage)
        else:
            (directory / damage.location.path).unlink(
                missing_ok=True
            )  # also removes a link, so that nothing is written through it
            write_metadata(directory / FEATURES, made, [path])
    return left


def _damaged_blocks(damages: Sequence[Damage]) -> list[Block]:
    """Return the blocks that have a damaged file, each once."""
    return list(
        dict.fromkeys(damage.location.block for damage in damages if damage.location.block is not None)
    )


def _refuse_copy(directory: Path) -> None:
    """Refuse to drop blocks of a copy from before origin.json: its images may be out of reach, and it must stay usable."""
    origin = card_origin(directory)
    if origin is not None:
        journal.clear(directory / JOURNAL)
        raise CacheError(
            f"{directory} was pulled, so nothing of it is dropped; run `{check_command(directory, origin, None)}` to fetch "
            "what is damaged again"
        )


def _refuse_irregular_files(verification: Verification) -> None:
    """Refuse links, which could lead the repair out of the cache, and folders, whose content is not ours to remove."""
    for damage in verification.damages:
        path = verification.directory / damage.location.path
        if damage.location.role == FileRole.LINK:
            raise CacheError(f"{path}: {IS_LINK}; remove the link and run the command again")
        expected = damage.location.role != FileRole.UNEXPECTED and damage.location.path != JOURNAL
        if expected and path.is_dir() and not path.is_symlink():
            raise CacheError(
                f"{path} is a folder, where a file must be; move it away and run the command again"
            )
    folder = verification.directory / JOURNAL
    if os.path.lexists(folder) and not folder.is_dir():
        raise CacheError(f"{folder} is no folder; move it away and run the command again")
    for path in sorted(folder.glob("*")):
        mismatch = irregularity(path)
        if mismatch and path.name != SCRATCH:
            raise CacheError(f"{path}: {mismatch}; move it away and run the command again")


def _remove(directory: Path, damages: Sequence[Damage], kinds: Sequence[FileRole]) -> None:
    folders = set()
    for damage in damages:
        path = directory / damage.location.path
        if damage.location.role in kinds and path.parent.is_dir():
            path.unlink(missing_ok=True)
            folders.add(path.parent)
    for folder in sorted(folders):
        sync_directory(folder)
