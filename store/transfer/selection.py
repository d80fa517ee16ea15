"""Selection of a part of a cache, and the files of that part."""

from attrs import field, frozen

from featcache.store.arrays import ArrayInfo
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import Inventory
from featcache.store.journal import FEATURES
from featcache.store.layers import FINAL, LAYER_SETS, LayerSelection, as_optional_layers
from featcache.store.manifest import FileRecord, Manifest
from featcache.store.parameters import as_names, parameter
from featcache.store.token_groups import PATCHES, parse_array_name, split_view
from featcache.store.views import PLAIN_VIEW, choose_views, view_names


@frozen
class CacheSelection:
    """A part of a cache; by default all of it. Labels, ids and the like of a split always come with it."""

    splits: tuple[str, ...] = field(
        default=(),
        converter=as_names,
        metadata=parameter("Splits, such as test.", "--split", several=True, default="all"),
    )
    layers: LayerSelection | None = field(
        default=None,
        converter=as_optional_layers,
        metadata=parameter(
            f"Layer set ({', '.join(LAYER_SETS)}), of which what the cache holds is meant, or a list such as 0,6,final.",
            "--layers",
            default="what there is",
        ),
    )
    taps: tuple[str, ...] = field(
        default=(),
        converter=as_names,
        metadata=parameter(
            "Taps, such as norm2 or mlp; the final norm comes with any of them unless the layers leave it out.",
            "--tap",
            several=True,
            default="all",
        ),
    )
    patches: bool = field(
        default=True,
        metadata=parameter("Whether patch tokens are taken or left out.", "--patches/--no-patches"),
    )
    views: tuple[str, ...] = field(
        default=(),
        converter=as_names,
        metadata=parameter(
            "Views of the images, such as plain,flip or crops5.", "--views", several=True, default="all"
        ),
    )

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
        self._check_views(inventory)
        layers = None if self.layers is None else self.layers.of(num_layers)
        held = {layer for array in arrays for layer in array.layers}
        # Of a set what the cache has is meant; a layer that is named must be there.
        for layer in layers or () if self.layers is None or self.layers.set_name is None else ():
            if layer not in held:
                raise UnknownNameError("layer", layer, sorted(held, key=_order), "(the cache holds no other)")
        wanted = {array.name: held if layers is None else layers for array in arrays if self._takes(array)}
        chosen = inventory.select(self.splits or inventory.splits, wanted)
        if not any(array.layers for split in chosen.splits.values() for array in split.arrays.values()):
            raise RequestError("nothing of the cache is chosen; see what it holds with `featcache info`")
        return chosen

    def _check_views(self, inventory: Inventory) -> None:
        choose_views(self.views, tuple(inventory.views))

    def _takes(self, array: ArrayInfo) -> bool:
        """Whether an array is of the taps, groups of tokens and views that are wanted."""
        tap, group = parse_array_name(array.name)
        of_tap = not self.taps or tap in self.taps or array.layers == (FINAL,)
        return of_tap and (self.patches or group != PATCHES) and self._takes_view(array)

    def _takes_view(self, array: ArrayInfo) -> bool:
        if not self.views or "all" in self.views:
            return True
        return (split_view(array.name)[0] or PLAIN_VIEW) in {
            name for item in self.views for name in view_names(item)
        }


def data_files(manifest: Manifest, inventory: Inventory) -> dict[str, FileRecord]:
    """Return the chunk files of a part of a cache, by path within the cache, block after block."""
    return {
        f"{FEATURES}/{path}": record
        for block in manifest.part(inventory).blocks
        for path, record in block.files.items()
    }


def _order(layer: str) -> int:
    return -1 if layer == FINAL else int(layer)
