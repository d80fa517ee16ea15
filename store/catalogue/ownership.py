"""Proof that a folder is a cache of ours, and which of the files in it are.

A name proves nothing: `thesis/run-0123456789ab/journal/` may be anybody's. The proof of a cache is a valid manifest or plan
whose key is the one in the folder's name. The proof of a file is its path in this manifest or plan.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featcache.store.errors import CacheError
from featcache.store.files import parse_json, read_sealed, temporary_for
from featcache.store.inventory import Inventory
from featcache.store.journal import FEATURES, JOURNAL, Plan, foreign_names, is_own_name, is_set_aside
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.partial_copy import HELD_FILE, ORIGIN_FILE
from featcache.store.provenance import PROVENANCE_FILE
from featcache.store.regular_files import read_regular
from featcache.store.requests import REQUEST_FILE
from featcache.store.shared_card import CARD_FILE
from featcache.store.writing.claim_files import RECORD_BYTES, SUFFIX
from featcache.store.zarr_metadata import METADATA_FILE, recorded_paths

DOCUMENTS = (MANIFEST_FILE, PROVENANCE_FILE, REQUEST_FILE, CARD_FILE, HELD_FILE, ORIGIN_FILE)
_CHUNK = re.compile(r"c(\.\d+)+")


@dataclass(frozen=True)
class OwnershipProof:
    """The documents that prove that a folder is a cache."""

    manifest: Manifest | None = None
    plan: Plan | None = None

    @property
    def inventory(self) -> Inventory | None:
        """Everything that may have files in the folder; None if that is not known."""
        manifest = self.manifest.full_inventory if self.manifest else None
        plan = self.plan.inventory if self.plan else None
        if manifest is None or plan is None:
            return manifest or plan
        try:
            return manifest.plus(plan)
        except CacheError:  # the plan of another cache, which adds nothing
            return manifest

    def names(self) -> dict[str, set[str]]:
        """Return the names of the files that the cache has or may have, by folder within the cache."""
        inside = _expected(self.inventory) if self.inventory else {}
        return {"": {*DOCUMENTS}, **inside}


def read_proof(folder: Path) -> OwnershipProof:
    """Return the manifest and the plan in `folder`, as far as they can be read."""
    manifest: Manifest | None = None
    plan: Plan | None = None
    with suppress(FileNotFoundError, CacheError):
        manifest = Manifest.read(folder)
    with suppress(FileNotFoundError, CacheError):
        plan = Plan.read(folder)
    return OwnershipProof(manifest, plan)


def ownership_proof(folder: Path, key: str) -> OwnershipProof | None:
    """Return the manifest and the plan of the cache in `folder`, if they are valid and have its key; None if neither is."""
    documents = read_proof(folder)
    manifest = (
        documents.manifest if documents.manifest is not None and documents.manifest.spec.key == key else None
    )
    plan = documents.plan if documents.plan is not None and documents.plan.spec.key == key else None
    return OwnershipProof(manifest, plan) if manifest or plan else None


def weak_ownership_proof(folder: Path) -> OwnershipProof | None:
    """Return the proof for a folder that was killed before it had a plan, or during its removal: a document or claim of ours.

    None if there is no such document, or if the folder has anything that a cache does not have.
    """
    documents = (
        name for name in (PROVENANCE_FILE, REQUEST_FILE, HELD_FILE, ORIGIN_FILE) if _is_sealed(folder / name)
    )
    claims = (path for path in folder.glob(f"{JOURNAL}/*{SUFFIX}") if _is_claim(path))
    shown = next(documents, None) or next(claims, None)
    return OwnershipProof() if shown and not foreign_files(folder, None) else None


def foreign_files(folder: Path, inventory: Inventory | None) -> list[Path]:
    """Return the paths in the folder of a cache that are not ours; a foreign folder is listed once, without its content.

    Args:
        folder: folder of the cache.
        inventory: inventory of the cache or its plan; without it, every name in one of our forms counts as ours.
    """
    expected = None if inventory is None else _expected(inventory)
    return sorted(_walk_foreign_files(folder, "", expected))


def is_own_path(path: str) -> bool:
    """Return whether a path within a cache has one of our forms; for folders of which only a listing is known."""
    *folders, name = path.split("/")
    if folders == [JOURNAL]:
        return is_own_name(name)
    if folders and folders[0] != FEATURES:
        return False
    return len(folders) <= 3 and _is_own_file("/".join(folders), name, None)


def _walk_foreign_files(folder: Path, within: str, expected: Mapping[str, set[str]] | None) -> Iterator[Path]:
    try:
        items = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in items:
        path, inside = Path(item.path), f"{within}/{item.name}".lstrip("/")
        if not item.is_dir(follow_symlinks=False):
            if not _is_own_file(within, item.name, expected):
                yield path
        elif inside == JOURNAL or (not within and is_set_aside(item.name)):
            yield from (path / name for name in foreign_names(path))
        elif _is_own_folder(within, item.name, expected):
            yield from _walk_foreign_files(path, inside, expected)
        else:
            yield path


def _is_own_folder(within: str, name: str, expected: Mapping[str, set[str]] | None) -> bool:
    if not within:
        return name == FEATURES
    if expected is not None:
        return f"{within}/{name}" in expected
    return within.count("/") < 2


def _is_own_file(within: str, name: str, expected: Mapping[str, set[str]] | None) -> bool:
    if not within:  # a link in the place of a folder is removed as a link
        return name in (*DOCUMENTS, FEATURES, JOURNAL) or temporary_for(name) in DOCUMENTS
    if expected is not None:
        names = expected.get(within, set())
        return name in names or temporary_for(name) in names
    bare = temporary_for(name) or name
    return bare == METADATA_FILE or (within.count("/") >= 1 and _CHUNK.fullmatch(bare) is not None)


def _expected(inventory: Inventory) -> dict[str, set[str]]:
    """Return the names that belong in features.zarr and in each folder below it, by folder."""
    names: dict[str, set[str]] = defaultdict(set)
    paths = [
        path
        for split in inventory.splits.values()
        for b in split.blocks()
        for _, path in split.chunk_files(b.index)
    ]
    for path in (*recorded_paths(inventory), *paths):
        folder, _, name = f"{FEATURES}/{path}".rpartition("/")
        names[folder].add(name)
    for folder in list(names):
        while "/" in folder:
            folder, _, name = folder.rpartition("/")
            names[folder].add(name)
    return dict(names)


def _is_sealed(path: Path) -> bool:
    try:
        read_sealed(path)
    except (FileNotFoundError, CacheError):
        return False
    return True


def _is_claim(path: Path) -> bool:
    try:
        owner = parse_json(read_regular(path, RECORD_BYTES), str(path))
    except (FileNotFoundError, CacheError):
        return False
    return owner.keys() == {"token", "machine", "pid"}
