"""The files within features.zarr, held to their recorded size and SHA-256."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from featcache.store.checking.damage import Damage, Kind, Place, reason
from featcache.store.checking.digests import sha256_files
from featcache.store.journal import FEATURES
from featcache.store.manifest import FileRecord, Manifest
from featcache.store.progress import Reporter
from featcache.store.regular_files import irregularity

MB, KB = 10**6, 10**3


def recorded_files(manifest: Manifest) -> Iterator[tuple[Place, FileRecord]]:
    """Every file within features.zarr that has a recorded digest."""
    for path, record in manifest.metadata.items():
        yield Place(f"{FEATURES}/{path}", Kind.METADATA), record
    for block_record in manifest.blocks:
        block = block_record.block
        for array in manifest.inventory.splits[block.split].arrays.values():
            for index, name in enumerate(array.chunk_names(block.index)):
                path = f"{block.split}/{array.name}/{name}"
                layer = array.layers[index] if array.layers else None
                place = Place(f"{FEATURES}/{path}", Kind.DATA, block, array.name, layer)
                yield place, block_record.files[path]


def file_damages(
    directory: Path, recorded: Sequence[tuple[Place, FileRecord]], threads: int, reporter: Reporter
) -> list[Damage]:
    """Sizes first, for they cost nothing, then the digests of the files whose size is right."""
    mismatches = {
        place: irregularity(directory / place.path) or record.mismatch(directory / place.path)
        for place, record in recorded
    }
    damages = [Damage(place, mismatch) for place, mismatch in mismatches.items() if mismatch]
    readable = [(place, record) for place, record in recorded if not mismatches[place]]
    owners = {record.sha256: place.path for place, record in recorded}
    total, done = sum(record.bytes for _, record in readable), 0
    found = sha256_files([directory / place.path for place, _ in readable], threads)
    unit, name = (MB, "MB") if total >= 10 * MB else (KB, "kB")
    # Closed at once on Ctrl-C, or the threads would first read all that is left.
    with closing(found) as digests, reporter.progress("verifying", name) as update:
        update(0, total // unit)
        for (place, record), digest in zip(readable, digests, strict=True):
            if not isinstance(digest, str):
                damages.append(Damage(place, reason(directory / place.path, digest)))
            elif digest != record.sha256:
                whose = f"; it holds the content of {owners[digest]}" if digest in owners else ""
                damages.append(Damage(place, f"content does not match its SHA-256{whose}"))
            done += record.bytes
            update(done // unit, total // unit)
    return damages
