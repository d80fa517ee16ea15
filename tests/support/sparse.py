"""Caches of any size that take no room: a real manifest and Zarr metadata over chunk files that are all holes."""

from pathlib import Path

from featcache.store.journal import FEATURES, Plan
from featcache.store.manifest import BlockRecord, FileRecord, Manifest
from featcache.store.zarr_metadata import create_metadata


def write_sparse_cache(directory: Path, plan: Plan, layers: tuple[str, ...] = ()) -> None:
    """Write the manifest of `plan`, and as holes (zeros) the chunk files of some layers."""
    features = directory / FEATURES
    features.mkdir(parents=True)
    create_metadata(features, plan.inventory)
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
                    name = array.chunk_name(block, array.layers.index(layer))
                    with (features / split.name / array.name / name).open("wb") as file:
                        file.truncate(array.chunk_bytes)
