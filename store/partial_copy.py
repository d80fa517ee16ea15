"""held.json: which part of a cache a partial copy holds, and where the rest is.

The manifest of a partial copy is that of the whole cache, so its digests hold; what is not held has no files. A copy
without held.json holds everything.
"""

import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from featcache.store.errors import CacheError, PartialCacheError
from featcache.store.files import field, read_sealed, write_sealed
from featcache.store.inventory import Inventory
from featcache.store.layers import FINAL
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.token_groups import split_view
from featcache.store.views import PLAIN_VIEW

HELD_FILE = "held.json"
ORIGIN_FILE = "origin.json"
"""File in every pulled copy, complete or partial: the address to fetch damaged files from again."""
COLUMN_ARRAYS = ("sample_id", "valid")
"""Arrays that a copy holds for each of its splits, besides ``label``, which a cache without labels does not have."""


@dataclass(frozen=True)
class PartialCopy:
    """Content and origin of a partial copy."""

    inventory: Inventory
    origin: str
    """Address of the cache that it was copied from, without credentials."""
    version: str = ""
    """Version of the remote's manifest when the remote was last asked, such as an ETag."""
    borrowed: bool = False
    """Fetched along the way: it may go when others need the room."""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Read what the copy at `directory` holds; None if it holds everything.

        Raises:
            CacheError: the file is damaged.
        """
        path = directory / HELD_FILE
        try:
            document, where = read_sealed(path), str(path)
        except FileNotFoundError:
            return None
        inventory = Inventory.from_dict(field(document, "inventory", dict, where), where, whole=False)
        for split in inventory.splits.values():
            columns = ("label", *COLUMN_ARRAYS) if inventory.targets.labeled else COLUMN_ARRAYS
            lacking = [name for name in columns if name not in split.arrays]
            if lacking:
                raise CacheError(
                    f"{where}: split {split.name!r} lacks the array {lacking[0]!r}, which every copy holds; "
                    "remove the copy and pull it again"
                )
        return cls(
            inventory,
            field(document, "origin", str, where),
            field(document, "version", str, where),
            field(document, "borrowed", bool, where),
        )

    def write(self, directory: Path) -> None:
        """Write it, atomically."""
        document = {
            "inventory": self.inventory.to_dict(),
            "origin": self.origin,
            "version": self.version,
            "borrowed": self.borrowed,
        }
        write_sealed(directory / HELD_FILE, document)


def read_partial_manifest(directory: Path) -> Manifest:
    """Read the manifest of the cache at `directory`, cut down to what is held here.

    Raises:
        FileNotFoundError: there is none, so the cache is not complete.
        CacheError: manifest or held.json is damaged.
    """
    manifest = Manifest.read(directory)
    held = PartialCopy.read(directory)
    if held is None:
        return manifest
    part = manifest.part(held.inventory)
    return part if part.inventory != manifest.inventory else manifest


def require_complete_copy(directory: Path, action: str) -> None:
    """Refuse a partial copy for something that takes all of the cache.

    Args:
        directory: folder of the cache.
        action: the thing that cannot be done, such as ``added to``.

    Raises:
        PartialCacheError: it is one; the message has the command that completes it.
        CacheError: its metadata are damaged.
    """
    held = PartialCopy.read(directory)
    if held is None or not (directory / MANIFEST_FILE).exists():
        return
    if read_partial_manifest(directory).whole is not None:
        raise PartialCacheError(
            f"{directory} is a partial copy and cannot be {action}; complete it first: {pull_command(directory, held.origin)}"
        )


def read_origin(directory: Path) -> str | None:
    """Return the address that the cache at `directory` was pulled from; None if it is no copy, or the address is unknown."""
    with suppress(FileNotFoundError, CacheError):
        path = directory / ORIGIN_FILE
        return str(field(read_sealed(path), "origin", str, str(path))) or None
    with suppress(CacheError):  # copies pulled by version 0.1.0 lack that file
        held = PartialCopy.read(directory)
        return (held.origin or None) if held else None
    return None


def write_origin(directory: Path, origin: str) -> None:
    """Record the origin of a copy, an address without credentials."""
    path = directory / ORIGIN_FILE
    with suppress(FileNotFoundError, CacheError):
        if read_sealed(path) == {"origin": origin}:
            return
    write_sealed(path, {"origin": origin})


def forget_copy(directory: Path) -> None:
    """Remove the notes of an unfinished pull, since the folder will hold another cache."""
    for name in (HELD_FILE, ORIGIN_FILE):
        (directory / name).unlink(missing_ok=True)


def update_access_time(directory: Path) -> None:
    """Note that a borrowed copy is used just now; those that were not for the longest time go first."""
    with suppress(OSError, CacheError):  # the root may be read-only
        try:
            os.utime(directory / HELD_FILE)
        except OSError:  # some file systems cannot set times, but a write updates them
            held = PartialCopy.read(directory)
            if held is not None:
                held.write(directory)


def describe_partial(inventory: Inventory, whole: Inventory) -> str:
    """Say in a few words what a partial copy holds, such as ``test, 1 of 25 layers``."""
    parts = []
    if inventory.splits.keys() != whole.splits.keys():
        parts.append("+".join(inventory.splits) or "no split")
    held, there = _layers(inventory), _layers(whole)
    if held != there:
        parts.append(f"{len(held)} of {len(there)} layers")
    lacking = sorted(_arrays(whole) - _arrays(inventory))
    if lacking and held == there:
        parts.append(f"without {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}")
    return ", ".join(parts) or "some layers"


def _layers(inventory: Inventory) -> set[str]:
    """Return the layers of any array; where the final norm is not the only one, it counts as one more."""
    return {
        layer
        for split in inventory.splits.values()
        for array in split.arrays.values()
        for layer in array.layers
    }


def _arrays(inventory: Inventory) -> set[str]:
    return {
        array.name for split in inventory.splits.values() for array in split.arrays.values() if array.layers
    }


def pull_command(directory: Path, origin: str, *options: str) -> str:
    """Return the command that fetches more of the copy at `directory`, whichever roots the shell has that it is typed into."""
    root = directory.absolute().parent.parent
    return shlex.join(["featcache", "pull", origin, *options, "--root", str(root)])


def check_command(directory: Path, origin: str, held: Inventory | None) -> str:
    """Return the command that fetches only the damaged files again.

    Args:
        directory: folder of the copy.
        origin: address that the copy was pulled from.
        held: content of a partial copy; None for a complete one.
    """
    return pull_command(directory, origin, *(_selection_options(held) if held else ()), "--check")


def missing_command(directory: Path, lacking: Inventory, origin: str) -> str:
    """Return the command that fetches what the partial copy at `directory` lacks of what is needed."""
    return pull_command(directory, origin, *_selection_options(lacking))


def _selection_options(part: Inventory) -> tuple[str, ...]:
    """Return the options of `featcache pull` that choose a part by splits, layers and views."""
    layers = _layers(part)
    blocks = sorted(layers - {FINAL}, key=int)
    named = ",".join([*blocks, *([FINAL] if FINAL in layers else [])])
    splits = ("--split", ",".join(part.splits)) if part.splits else ()
    plain = any(
        array.layers and not split_view(array.name)[0]
        for split in part.splits.values()
        for array in split.arrays.values()
    )
    views = ("--views", ",".join([*([PLAIN_VIEW] if plain else []), *part.views])) if part.views else ()
    return (*splits, *(("--layers", named) if named else ()), *views)
