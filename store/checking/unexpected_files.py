"""Files in the folders of a cache that do not belong there."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from featcache.store.checking.damage import Damage, FileLocation, FileRole
from featcache.store.checking.links import is_behind_link
from featcache.store.files import temporary_for
from featcache.store.inventory import Inventory
from featcache.store.journal import FEATURES, JOURNAL, is_set_aside
from featcache.store.manifest import MANIFEST_FILE
from featcache.store.partial_copy import HELD_FILE, ORIGIN_FILE
from featcache.store.provenance import PROVENANCE_FILE
from featcache.store.requests import REQUEST_FILE
from featcache.store.shared_card import CARD_FILE
from featcache.store.zarr_metadata import recorded_paths


def unexpected_files(
    directory: Path, inventory: Inventory, complete: bool, linked: Sequence[str]
) -> Iterator[Damage]:
    """Yield files and folders that a cache of this inventory has no place for, and what a killed process left.

    Only the folders of the cache itself are looked into: a strange folder is named once, whatever is in it, and what
    lies behind the links in `linked` is left alone. While a cache is unfinished or being added to, temporary files and
    the journal are its own.
    """
    for folder, names in _expected_names(inventory).items():
        if is_behind_link(folder, linked):
            continue
        try:
            entries = sorted(os.scandir(directory / folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue  # the files that should be in it are reported as missing
        for entry in entries:
            path = f"{folder}/{entry.name}".lstrip("/")
            if entry.name in names or path in linked:
                continue
            # A journal is moved aside before it is removed; other folders are nobody's.
            if entry.is_dir(follow_symlinks=False):
                temporary = is_set_aside(path)
            else:
                temporary = temporary_for(entry.name) in names
            if not temporary and path != JOURNAL:
                yield Damage(FileLocation(path, FileRole.UNEXPECTED), "does not belong in a cache")
            elif complete:
                yield Damage(FileLocation(path, FileRole.STALE), "left by a process that was killed")


def _expected_names(inventory: Inventory) -> dict[str, set[str]]:
    """Return the names that belong in each folder of the cache."""
    names: dict[str, set[str]] = defaultdict(set)
    names[""] = {MANIFEST_FILE, PROVENANCE_FILE, REQUEST_FILE, CARD_FILE, HELD_FILE, ORIGIN_FILE, FEATURES}
    paths = list(recorded_paths(inventory))
    for split in inventory.splits.values():
        for block in split.blocks():
            paths += [path for _, path in split.chunk_files(block.index)]
    for path in paths:
        folder, _, name = f"{FEATURES}/{path}".rpartition("/")
        names[folder].add(name)
    for folder in [folder for folder in names if "/" in folder]:
        parent, _, name = folder.rpartition("/")
        names[parent].add(name)
    return names
