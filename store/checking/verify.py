"""`featcache verify`, as a function: every file of a cache against the size and SHA-256 taken while it was written.

Nothing is believed: sizes and digests come from the manifest, the manifest's from itself, and the folders must hold
nothing else. Of an unfinished cache the committed blocks are checked, whose digests are in the journal.
"""

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from featcache.store.checking.addition import unfinished_addition, without_new_groups
from featcache.store.checking.column_checks import column_damages
from featcache.store.checking.damage import Damage, FileLocation, FileRole, reason
from featcache.store.checking.documents import document_damages, documents, name_damages, read_inventory
from featcache.store.checking.file_checks import MB, file_damages, recorded_files
from featcache.store.checking.links import is_behind_link, linked_folders
from featcache.store.checking.unexpected_files import unexpected_files
from featcache.store.checking.zarr_agreement import check_metadata
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject
from featcache.store.inventory import Block, Inventory
from featcache.store.journal import FEATURES
from featcache.store.machine import usable_cpus
from featcache.store.manifest import Manifest
from featcache.store.partial_copy import PartialCopy, check_command, read_origin
from featcache.store.progress import Reporter, Silent
from featcache.store.shared_card import card_origin
from featcache.store.zarr_metadata import metadata_paths


@dataclass(frozen=True)
class Verification:
    """Result of checking one cache."""

    directory: Path
    complete: bool
    """Whether there is a manifest."""
    manifest: Manifest | None
    """The manifest that files were checked against; None if the manifest itself is damaged."""
    damages: Sequence[Damage]
    files: int
    """Files that were checked."""
    num_bytes: int
    """Bytes of these files."""
    seconds: float

    @property
    def intact(self) -> bool:
        """Whether the cache is complete and without damage."""
        return self.complete and not self.damages

    @cached_property
    def missing_blocks(self) -> list[Block]:
        """Blocks that are not committed."""
        return self.manifest.missing_blocks() if self.manifest else []

    @property
    def remedy(self) -> str:
        """Advice on repairing the damages."""
        origin = read_origin(self.directory) or card_origin(self.directory) if self.complete else None
        if self.manifest is None and origin is not None:
            return f"run `{check_command(self.directory, origin, _partial_inventory(self.directory))}` to fetch it again"
        if self.manifest is None:
            return (
                "remove the folder and extract again, or fetch the file from whoever has a copy of the cache"
            )
        if any(damage.location.role == FileRole.LINK for damage in self.damages):
            return "remove the links, or make a copy without them with `cp -rL`, and run the command again"
        if all(damage.location.role == FileRole.UNEXPECTED for damage in self.damages):
            return "move away what does not belong there; the data are intact"
        part = self.manifest.inventory if self.manifest.whole is not None else None
        if origin is not None or part is not None:
            command = check_command(self.directory, origin or "REMOTE/CACHE", part)
            return f"run `{command}` to fetch what is damaged again"
        command = check_command(self.directory, "REMOTE/CACHE", None)
        return (
            f"run `featcache verify --repair {self.directory}` to drop what is damaged, so that it is extracted again"
            + (f", or `{command}` to fetch it if a remote has this cache" if self.complete else "")
        )

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values."""
        state = "damaged" if self.damages else "intact" if self.complete else "incomplete"
        return {
            "path": str(self.directory),
            "key": self.manifest.spec.key if self.manifest else None,
            "state": state,
            "complete": self.complete,
            "damages": [damage.to_dict() for damage in self.damages],
            "missing_blocks": [[block.split, block.index] for block in self.missing_blocks],
            "files": self.files,
            "bytes": self.num_bytes,
            "seconds": round(self.seconds, 3),
            "mb_per_second": round(self.num_bytes / MB / max(self.seconds, 1e-9), 1),
        }


def verify(directory: Path, *, threads: int | None = None, reporter: Reporter | None = None) -> Verification:
    """Check every byte of the cache at `directory`. Nothing is written.

    Args:
        directory: folder of the cache, complete or not.
        threads: files read at the same time; one per core if not given.
        reporter: is told the megabytes read.

    Raises:
        CacheNotFoundError: there is no cache.
    """
    started = time.perf_counter()
    complete, manifest, damages = read_inventory(directory)
    checked = [directory / path for path in documents(directory, complete)]
    num_bytes = sum(path.stat().st_size for path in checked)
    if complete:
        damages += document_damages(directory)
    damages += linked_folders(directory, manifest.inventory if manifest else None)
    if manifest is not None:
        linked = [damage.location.path for damage in damages if damage.location.role == FileRole.LINK]
        recorded = [
            (location, record)
            for location, record in recorded_files(manifest)
            if not is_behind_link(location.path, linked)
        ]
        damages += file_damages(directory, recorded, threads or usable_cpus(), reporter or Silent())
        unread = {damage.location.path for damage in damages}
        damages += _metadata_damages(directory, manifest, complete, unread, linked)
        damages += column_damages(directory, manifest, unread, linked)
        addition = unfinished_addition(directory, manifest) if complete else None
        if addition is not None:
            damages = without_new_groups(directory, manifest, addition, damages)
        whole = manifest.full_inventory
        held = whole.plus(addition.inventory) if addition else whole
        damages += unexpected_files(directory, held, complete and addition is None, linked)
        damages += name_damages(directory, manifest)
        checked += [directory / location.path for location, _ in recorded]
        num_bytes += sum(record.bytes for _, record in recorded)
    seconds = time.perf_counter() - started
    return Verification(directory, complete, manifest, damages, len(checked), num_bytes, seconds)


def _partial_inventory(directory: Path) -> Inventory | None:
    """Return the content of a partial copy; None if the copy is complete, or if its content is not known."""
    with suppress(CacheError):
        held = PartialCopy.read(directory)
        return held.inventory if held else None
    return None


def _metadata_damages(
    directory: Path, manifest: Manifest, complete: bool, bad: Collection[str], linked: Sequence[str]
) -> Iterator[Damage]:
    for path in metadata_paths(manifest.full_inventory):
        location = FileLocation(f"{FEATURES}/{path}", FileRole.METADATA)
        full = directory / location.path
        # An unfinished cache may not have come to writing it.
        if (
            location.path in bad
            or is_behind_link(location.path, linked)
            or (not complete and not os.path.lexists(full))
        ):
            continue
        try:
            check_metadata(directory / FEATURES, path, manifest.full_inventory)
        except (CacheError, OSError) as error:
            yield Damage(location, reason(full, error))
