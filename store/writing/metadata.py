"""The Zarr metadata files of a cache that is being written, the projection among them, and their records."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from featcache.store.files import sha256_hex, sync_directory, write_atomic
from featcache.store.inventory import Inventory
from featcache.store.manifest import FileRecord
from featcache.store.regular_files import has_content
from featcache.store.zarr_metadata import array_metadata_paths, chunks_beside_splits, recorded_paths


def write_metadata(features: Path, documents: Mapping[str, bytes], paths: Iterable[str]) -> None:
    """Write those of `documents` that `paths` names, where the file does not hold them already."""
    folders = set()
    for path in paths:
        target = features / path
        folders |= {target.parent, target.parent.parent}
        # On resume too: what was damaged in the meantime must not be sealed into the manifest.
        if not has_content(target, documents[path]):
            write_atomic(target, documents[path])
    for folder in sorted(folders):
        sync_directory(folder)


def metadata_records(
    documents: Mapping[str, bytes], held: Mapping[str, FileRecord], inventory: Inventory
) -> dict[str, FileRecord]:
    """Return the size and digest of every metadata file of `inventory`; arrays that were `held` before keep theirs."""
    kept = {
        path: held[path]
        for path in (*array_metadata_paths(inventory), *chunks_beside_splits(inventory))
        if path in held
    }
    made = {path: FileRecord(len(document), sha256_hex(document)) for path, document in documents.items()}
    return {path: (made | kept)[path] for path in recorded_paths(inventory)}
