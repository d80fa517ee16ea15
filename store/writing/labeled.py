"""A copy of a cache with other labels: feature files are hard links to those of the original, and only labels are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from featcache.store.arrays import ArrayInfo
from featcache.store.errors import CacheCompletedError
from featcache.store.inventory import Inventory, SplitInventory
from featcache.store.journal import FEATURES, Plan
from featcache.store.manifest import BlockRecord
from featcache.store.planning import label_array
from featcache.store.quantization import Scales
from featcache.store.reading.reader import Cache
from featcache.store.reading.scales import load_scales
from featcache.store.spec import CacheSpec
from featcache.store.targets import Targets
from featcache.store.writing.writer import CacheWriter

Labels = npt.NDArray[Any]


def labeled_inventory(inventory: Inventory, targets: Targets) -> Inventory:
    """Return the inventory of a cache with labels of another kind, or with some where there were none."""

    def labeled(split: SplitInventory) -> SplitInventory:
        others = {name: array for name, array in split.arrays.items() if name != "label"}
        label = label_array(split.num_samples, split.block_rows, targets)
        return replace(split, arrays=dict(sorted({**others, label.name: label}.items())))

    return replace(
        inventory,
        splits={name: labeled(split) for name, split in inventory.splits.items()},
        class_names=targets.names,
        target_kind=targets.type,
        units=targets.units,
    )


def write_labeled(
    cache: Cache,
    directory: Path,
    spec: CacheSpec,
    targets: Targets,
    labels: Mapping[str, Labels],
    documents: Callable[[CacheWriter], tuple[Mapping[str, Any], str]],
    say: Callable[[str], object],
) -> int:
    """Write the copy; a copy that was begun and killed is finished.

    Args:
        cache: the original, complete.
        directory: folder of the copy, whose files are links where the file system has them, and copies elsewhere.
        spec: spec of the copy.
        targets: kind, names and units of the new labels.
        labels: by split, the labels ``[N, ...]`` in their stored type.
        documents: returns provenance and card of the copy, once all blocks are written.
        say: receives a line when the writer waits for another process.

    Returns:
        The number of feature files that were copied, because no link could be made.

    Raises:
        CacheError: a file of the original is missing, of another size or, where it is copied, damaged.
    """
    plan = Plan(spec, labeled_inventory(cache.inventory, targets), cache.manifest.batch_size)
    records = {(record.block.split, record.block.index): record for record in cache.manifest.blocks}
    copied = 0
    try:
        with CacheWriter(
            directory, plan, projection=cache.projection(), fit=_scales_of(cache), say=say
        ) as writer:
            while True:
                while (block := writer.claim()) is not None:
                    place = block.block
                    rows = labels[place.split][place.start : place.stop]
                    copied += block.take_over(
                        cache.directory / FEATURES,
                        _without_labels(records[place.split, place.index]),
                        {"label": rows},
                    )
                    writer.commit(block)
                if not writer.wait():
                    break
            writer.finish(*documents(writer))
    except CacheCompletedError:  # by another process, a moment ago
        pass
    return copied


def _without_labels(record: BlockRecord) -> BlockRecord:
    prefix = f"{record.block.split}/label/"
    return replace(
        record, files={path: file for path, file in record.files.items() if not path.startswith(prefix)}
    )


def _scales_of(cache: Cache) -> Callable[[Sequence[ArrayInfo]], dict[str, Scales]]:
    return lambda arrays: {array.name: load_scales(cache.directory / FEATURES, array) for array in arrays}
