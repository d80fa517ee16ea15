"""Folders of a cache that are links: what lies behind one is not the cache's, so nothing there is read or removed."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from featcache.store.checking.damage import Damage, FileLocation, FileRole
from featcache.store.inventory import Inventory
from featcache.store.journal import FEATURES, JOURNAL
from featcache.store.regular_files import IS_LINK


def linked_folders(directory: Path, inventory: Inventory | None) -> Iterator[Damage]:
    """Yield the folders of a cache that are links; without an inventory, those that every cache has."""
    folders = [FEATURES, JOURNAL]
    for split in inventory.splits.values() if inventory else ():
        folders += [f"{FEATURES}/{split.name}", *(f"{FEATURES}/{split.name}/{name}" for name in split.arrays)]
    linked: list[str] = []
    for folder in folders:
        if not is_behind_link(folder, linked) and os.path.islink(directory / folder):
            linked.append(folder)
    for path in linked:
        yield Damage(FileLocation(path, FileRole.LINK), IS_LINK)


def is_behind_link(path: str, linked: Sequence[str]) -> bool:
    """Return whether `path`, within the folder of the cache, is one of the linked folders or lies below one."""
    return any(path == link or path.startswith(f"{link}/") for link in linked)
