"""Which part of a cache is wanted, and which files that are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from featcache.store.arrays import ArrayInfo
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import Inventory, SplitInventory
from featcache.store.journal import FEATURES
from featcache.store.layers import FINAL, LAYER_SETS, parse_layers
from featcache.store.manifest import FileRecord, Manifest
from featcache.store.token_groups import PATCHES, parse_array_name


@dataclass(frozen=True)
class CacheSelection:
    """A part of a cache; by default all of it. Labels, ids and the like of a split always come with it."""

    splits: tuple[str, ...] = ()
    """Splits; all if empty."""
    layers: str | None = None
    """Layer set or list; all that the cache holds if not given."""
    taps: tuple[str, ...] = ()
    """Taps, and ``final``; all if empty. The final norm comes with any tap unless `layers` leaves it out."""
    patches: bool = True
    """Whether patch tokens are wanted."""

    def of(self, inventory: Inventory, num_layers: int) -> Inventory:
        """Return the chosen part of `inventory`, of a backbone of L = `num_layers` blocks.

        Raises:
            UnknownNameError: a split, layer or tap does not exist.
            RequestError: nothing of the cache is chosen.
        """
        for split in self.splits:
            if split not in inventory.splits:
                raise UnknownNameError("split", split, inventory.splits, "(the cache holds no other)")
        arrays = [a for split in inventory.splits.values() for a in split.arrays.values() if a.layers]
        there = {parse_array_name(array.name)[0] for array in arrays}
        for tap in self.taps:
            if tap not in there:
                raise UnknownNameError("tap", tap, sorted(there), "(the cache holds no other)")
        layers = None if self.layers is None else parse_layers(self.layers, num_layers)
        held = {layer for array in arrays for layer in array.layers}
        # Of a set what the cache has is meant; a layer that is named must be there.
        for layer in layers or () if self.layers not in LAYER_SETS else ():
            if layer not in held:
                raise UnknownNameError("layer", layer, sorted(held, key=_order), "(the cache holds no other)")
        chosen = {
            name: replace(split, arrays=self._arrays(split, layers))
            for name, split in inventory.splits.items()
            if not self.splits or name in self.splits
        }
        if not any(array.layers for split in chosen.values() for array in split.arrays.values()):
            raise RequestError("nothing of the cache is chosen; see what it holds with `featcache info`")
        return replace(inventory, splits=chosen)

    def _arrays(self, split: SplitInventory, layers: Sequence[str] | None) -> dict[str, ArrayInfo]:
        arrays = {}
        for array in split.arrays.values():
            if not array.layers:
                arrays[array.name] = array
                continue
            tap, group = parse_array_name(array.name)
            wanted = tuple(layer for layer in array.layers if layers is None or layer in layers)
            of_tap = not self.taps or tap in self.taps or array.layers == (FINAL,)
            if wanted and of_tap and (self.patches or group != PATCHES):
                arrays[array.name] = replace(array, layers=wanted)
        return arrays


def data_files(manifest: Manifest, inventory: Inventory) -> dict[str, FileRecord]:
    """Return the chunk files of a part of a cache, by path within the cache, block after block."""
    return {
        f"{FEATURES}/{path}": record
        for block in manifest.part(inventory).blocks
        for path, record in block.files.items()
    }


def _order(layer: str) -> int:
    return -1 if layer == FINAL else int(layer)
