"""Caches of any size that take no room: a real manifest and Zarr metadata over chunk files that are all holes."""

from pathlib import Path

from featcache.store.journal import FEATURES, Plan
from featcache.store.manifest import BlockRecord, FileRecord, Manifest
from featcache.store.zarr_metadata import metadata_documents


def write_sparse_cache(directory: Path, plan: Plan, layers: tuple[str, ...] = ()) -> None:
    """Write the manifest of `plan`, and as holes (zeros) the chunk files of some layers."""
    features = directory / FEATURES
    features.mkdir(parents=True)
    for path, document in metadata_documents(plan.inventory).items():
        (features / path).parent.mkdir(parents=True, exist_ok=True)
        (features / path).write_bytes(document)
    records = [
        BlockRecord(
            block,
            {path: FileRecord(array.chunk_bytes, "0" * 64) for array, path in split.chunk_files(block.index)},
        )
        for split in plan.inventory.splits.values()
        for block in split.blocks()
    ]
    Manifest(plan.spec, plan.inventory, plan.batch_size, records, {}).write(directory)
    for split in plan.inventory.splits.values():
        for array in split.arrays.values():
            for layer in set(layers) & set(array.layers):
                for block in range(array.num_blocks):
                    name = array.chunk_name(block, array.position(layer))
                    with (features / split.name / array.name / name).open("wb") as file:
                        file.truncate(array.chunk_bytes)
