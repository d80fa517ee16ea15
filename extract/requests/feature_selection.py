"""What of a backbone's features a cache is to hold: taps, layers, groups of tokens, splits."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from attrs import Attribute, field, frozen

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import DEFAULT_TAP, TAPS, Inventory
from featcache.store.layers import FINAL, LAYER_SETS, LayerSelection, as_layers, as_optional_layers
from featcache.store.parameters import as_names, parameter
from featcache.store.planning import TokenArray
from featcache.store.spec import BackboneSpec
from featcache.store.token_groups import (
    EMBEDDING,
    GRIDS,
    GROUPS,
    PATCHES,
    POOLED,
    REGISTERS,
    STATISTICS,
    array_name,
    parse_groups,
    sort_groups,
    token_names,
)
from featcache.store.views import CORNERS, View, as_views

if TYPE_CHECKING:
    from featcache.extraction.backbones.base import Backbone, TokenLayout


def as_token_groups(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the groups of tokens that a list such as ``cls,ap,grid2`` names; see `parse_groups`."""
    if isinstance(given, str):
        return parse_groups(given)
    # Groups of a request that is copied; the pooled one has a name that nobody types.
    return sort_groups(given) if POOLED in given else parse_groups(",".join(given))


def _check_taps(request: object, field: "Attribute[tuple[str, ...]]", taps: tuple[str, ...]) -> None:
    for tap in taps:
        if tap not in TAPS:
            raise UnknownNameError("tap", tap, TAPS)
    if not taps:
        raise RequestError(f"no tap is named; there are {', '.join(TAPS)}")


# Without slots, since a class cannot inherit from two that have them.
@frozen(kw_only=True, slots=False)
class FeatureSelection:
    """What to cache; the final norm's class token and average are always there.

    Raises:
        UnknownNameError: a tap or token kind does not exist.
        RequestError: nothing is named where something must be.
    """

    taps: tuple[str, ...] = field(
        default=(DEFAULT_TAP,),
        converter=as_names,
        validator=_check_taps,
        metadata=parameter(f"Taps (places in a block): {', '.join(TAPS)}.", "--tap", several=True),
    )
    layers: LayerSelection = field(  # type: ignore[assignment]  # the default is converted too
        default="every",
        converter=as_layers,
        metadata=parameter(
            f"Blocks: a layer set ({', '.join(LAYER_SETS)}) or a list such as 0,6,11.", "--layers"
        ),
    )
    tokens: tuple[str, ...] = field(
        default="cls,ap",
        converter=as_token_groups,
        metadata=parameter(
            f"Token kinds besides cls and ap, which are always cached: {', '.join(GROUPS[1:])}.", "--tokens"
        ),
    )
    patches: LayerSelection | None = field(
        default=None,
        converter=as_optional_layers,
        metadata=parameter(
            "Layers whose patch tokens are cached, such as final or 5,11,final.",
            "--patches",
            default="final if patches are among the tokens, else none",
        ),
    )
    splits: tuple[str, ...] = field(
        default=(),
        converter=as_names,
        metadata=parameter("Splits to cache, such as test.", "--split", several=True, default="all"),
    )

    views: tuple[View, ...] = field(
        default="",
        converter=as_views,
        metadata=parameter(
            f"Views of each image besides the plain one: flip, crops5 (the four corners, with the plain center crop), crop1 to crop{len(CORNERS)}, "
            "scales:224+336 (input sizes in pixels), random:4:seed0 (random resized crops).",
            "--views",
            metavar="LIST",
            default="none",
        ),
    )

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of tokens to cache."""
        return sort_groups([*self.tokens, PATCHES]) if self.patches else self.tokens

    def choose_splits(self, available: Collection[str]) -> list[str]:
        """The splits to cache of those that a dataset has.

        Raises:
            UnknownNameError: it has no such split.
        """
        for name in self.splits:
            if name not in available:
                raise UnknownNameError("split", name, available)
        return [name for name in available if name in self.splits or not self.splits]

    def are_held(self, inventory: Inventory, backbone: BackboneSpec, splits: Collection[str]) -> bool:
        """Whether a cache of a backbone holds all this, told without loading the backbone."""
        wanted = list(self._names_and_layers(backbone))
        if any(inventory.views.get(view.name, view) != view for view in self.views_of(backbone)):
            return False
        return all(
            name in inventory.splits
            and array in inventory.splits[name].arrays
            and {*layers} <= {*inventory.splits[name].arrays[array].layers}
            for name in self.choose_splits(splits)
            for array, layers in wanted
        )

    def part_of(
        self, inventory: Inventory, backbone: BackboneSpec, splits: Collection[str]
    ) -> Inventory | None:
        """The part of a cache that holds all this, with the columns of its splits; None if the cache lacks some of it."""
        if not self.are_held(inventory, backbone, splits):
            return None
        return inventory.select(self.choose_splits(splits), dict(self._names_and_layers(backbone)))

    def views_of(self, backbone: BackboneSpec) -> tuple[View, ...]:
        """Return the views that differ from the plain one: not that of the model's own input size."""
        return tuple(view for view in self.views if (view.input_size, view.input_size) != backbone.image_size)

    def require_of(self, name: str, num_layers: int, num_registers: int) -> None:
        """Refuse what a backbone of L = `num_layers` blocks cannot give, told without loading it.

        Raises:
            UnknownNameError: a layer does not exist.
            RequestError: registers are asked for, and it has none.
        """
        groups = {group for _, group, _ in self._parts(num_layers)}
        if REGISTERS in groups and not num_registers:
            raise _lacks(name, REGISTERS)

    def token_arrays(self, backbone: "Backbone") -> list[TokenArray]:
        """The arrays that hold all this.

        Raises:
            UnknownNameError: a layer does not exist.
            RequestError: registers of a backbone that has none are asked for.
            BackboneError: the blocks have no such tap, or the backbone cannot run at the input size of a view.
        """
        arrays = self._arrays_of(backbone)
        for view in self.views_of(backbone.spec):
            sized = backbone if view.input_size is None else backbone.at_size(view.input_size)
            own_grid = sized.layout.grid != backbone.layout.grid
            arrays += [replace(array, view=view.name, own_grid=own_grid) for array in self._arrays_of(sized)]
        return arrays

    def _arrays_of(self, backbone: "Backbone") -> list[TokenArray]:
        """The arrays of one view."""
        spec, layout = backbone.spec, backbone.layout
        groups = _group_tokens(layout)
        arrays = []
        for tap, group, layers in self._parts(spec.num_layers):
            if not groups[group]:
                raise _lacks(spec.architecture, group)
            depth, width = (
                (1, spec.width) if tap == FINAL else (spec.num_layers, backbone.tap_point(tap, 0).width)
            )
            arrays.append(TokenArray(tap, group, layers, depth, groups[group], width))
        if backbone.embedding_point is not None:
            width = backbone.embedding_point.width
            arrays.append(TokenArray(EMBEDDING, POOLED, (FINAL,), 1, (EMBEDDING,), width))
        return arrays

    def _parts(self, num_layers: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Tap, group and layers of every array."""
        every = self.layers.of(num_layers)
        of_patches = (FINAL,) if self.patches is None else self.patches.of(num_layers)
        for group in self.groups:
            layers = of_patches if group == PATCHES else (*every, FINAL)
            blocks = tuple(sorted({*layers} - {FINAL}, key=int))
            for tap in self.taps:
                if blocks:
                    yield tap, group, blocks
            if FINAL in layers:
                yield FINAL, group, (FINAL,)

    def _names_and_layers(self, backbone: BackboneSpec) -> Iterator[tuple[str, tuple[str, ...]]]:
        names = ["", *(view.name for view in self.views_of(backbone))]
        for tap, group, layers in self._parts(backbone.num_layers):
            for view in names:
                yield array_name(tap, group, view), layers


def _lacks(name: str, group: str) -> RequestError:
    return RequestError(f"{name} has no {group}; leave them out of --tokens")


def _group_tokens(layout: "TokenLayout") -> dict[str, tuple[str, ...]]:
    """Names of the tokens of every group."""
    return {
        POOLED: ("cls", "ap") if layout.has_class_token else ("ap",),
        REGISTERS: token_names(REGISTERS, layout.num_registers),
        PATCHES: token_names(PATCHES, layout.num_patches),
        **{group: token_names(group, side * side) for group, side in GRIDS.items()},
        **{group: token_names(group, min(layout.num_patches, 1)) for group in STATISTICS},
    }
