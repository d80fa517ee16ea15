"""Labels, ids and validity, held to what they may be: a digest vouches for bytes, not for their sense."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from featcache.store.arrays import ArrayInfo
from featcache.store.checking.damage import Damage, FileLocation, FileRole
from featcache.store.checking.links import is_behind_link
from featcache.store.columns import id_mismatch, valid_mismatch
from featcache.store.inventory import Block
from featcache.store.journal import FEATURES
from featcache.store.manifest import Manifest
from featcache.store.reading.chunks import Array, read_into
from featcache.store.regular_files import open_regular


def column_damages(
    directory: Path, manifest: Manifest, bad: Collection[str], linked: Sequence[str]
) -> Iterator[Damage]:
    """Yield the damages of the columns of committed blocks whose values are impossible.

    Blocks with files in `bad`, or behind the links in `linked`, are passed over.
    """
    targets = manifest.inventory.targets
    for record in manifest.blocks:
        block = record.block
        split = manifest.inventory.splits[block.split]
        names = ("label", "valid", "sample_id") if targets.labeled else ("valid", "sample_id")
        arrays = [split.arrays[name] for name in names]
        paths = [f"{FEATURES}/{split.name}/{array.name}/{array.chunk_name(block.index)}" for array in arrays]
        if any(path in bad or is_behind_link(path, linked) for path in paths):
            continue
        *label, valid, ids = (
            _read(directory / path, array, block) for path, array in zip(paths, arrays, strict=True)
        )
        mismatches = (
            *(targets.mismatch(values, valid, block.start) for values in label),
            valid_mismatch(valid, block.start),
            id_mismatch(ids, block.start),
        )
        for path, array, mismatch in zip(paths, arrays, mismatches, strict=True):
            if mismatch:
                yield Damage(FileLocation(path, FileRole.DATA, block, array.name), mismatch)


def _read(path: Path, array: ArrayInfo, block: Block) -> Array:
    values = np.empty((block.rows, *array.row_shape), array.stored_dtype)
    descriptor, _ = open_regular(path)
    with open(descriptor, "rb"):
        read_into(descriptor, values, 0)
    return values
