"""The files within features.zarr, held to their recorded size and SHA-256."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from featcache.store.checking.damage import Damage, FileLocation, FileRole, reason
from featcache.store.checking.digests import sha256_files
from featcache.store.journal import FEATURES
from featcache.store.manifest import FileRecord, Manifest
from featcache.store.progress import Reporter
from featcache.store.regular_files import irregularity

MB, KB = 10**6, 10**3


def recorded_files(manifest: Manifest) -> Iterator[tuple[FileLocation, FileRecord]]:
    """Yield every file within features.zarr that has a recorded digest."""
    for path, record in manifest.metadata.items():
        yield FileLocation(f"{FEATURES}/{path}", FileRole.METADATA), record
    for block_record in manifest.blocks:
        block = block_record.block
        for array in manifest.inventory.splits[block.split].arrays.values():
            for index, name in enumerate(array.chunk_names(block.index)):
                path = f"{block.split}/{array.name}/{name}"
                layer = array.layers[index] if array.layers else None
                location = FileLocation(f"{FEATURES}/{path}", FileRole.DATA, block, array.name, layer)
                yield location, block_record.files[path]


def file_damages(
    directory: Path, recorded: Sequence[tuple[FileLocation, FileRecord]], threads: int, reporter: Reporter
) -> list[Damage]:
    """Check sizes first, since they cost nothing, then the digests of the files whose size is right."""
    mismatches = {
        location: irregularity(directory / location.path) or record.mismatch(directory / location.path)
        for location, record in recorded
    }
    damages = [Damage(location, mismatch) for location, mismatch in mismatches.items() if mismatch]
    readable = [(location, record) for location, record in recorded if not mismatches[location]]
    owners = {record.sha256: location.path for location, record in recorded}
    total, done = sum(record.bytes for _, record in readable), 0
    found = sha256_files([directory / location.path for location, _ in readable], threads)
    unit, name = (MB, "MB") if total >= 10 * MB else (KB, "kB")
    # Closed at once on Ctrl-C, or the threads would first read all that is left.
    with closing(found) as digests, reporter.progress("verifying", name) as update:
        update(0, total // unit)
        for (location, record), digest in zip(readable, digests, strict=True):
            if not isinstance(digest, str):
                damages.append(Damage(location, reason(directory / location.path, digest)))
            elif digest != record.sha256:
                whose = f"; it holds the content of {owners[digest]}" if digest in owners else ""
                damages.append(Damage(location, f"content does not match its SHA-256{whose}"))
            done += record.bytes
            update(done // unit, total // unit)
    return damages
