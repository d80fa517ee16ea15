"""Which tokens a head sees: layers, token kinds and tap, as they were asked for and as a cache holds them. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import DEFAULT_TAP, SPLITS, TAPS
from featcache.store.layers import FINAL, LAYER_SETS, TOKEN_KINDS, LayerSelection, layer_set
from featcache.store.reading.reader import Cache
from featcache.store.reading.split import SplitReader
from featcache.store.token_groups import POOLED, STATISTICS, array_name, parse_groups
from featcache.store.views import PLAIN_VIEW, choose_views

if TYPE_CHECKING:
    from featcache.probing.heads import HeadInfo


MOST_NAMED = 5
"""Views that a title names one by one."""


@dataclass(frozen=True)
class Part:
    """Tokens of one group that a head sees."""

    group: str
    layers: tuple[str, ...]
    tokens: tuple[str, ...]
    """As the cache names them: ``cls`` and ``ap``, or ``patch0``, ``patch1``, ..."""
    tap: str = DEFAULT_TAP
    """Where in a block they were taken; ``final`` if the final layer is the only one."""

    @property
    def num_tokens(self) -> int:
        """Tokens a sample."""
        return len(self.layers) * len(self.tokens)

    @property
    def array(self) -> str:
        """Name of the array that holds its blocks."""
        return array_name(self.tap, self.group)

    def of(self, split: SplitReader, view: str = PLAIN_VIEW) -> SplitReader:
        """Look at a split so that it has the part's layers and tokens, in a view of the images.

        Raises:
            UnknownNameError: the split does not hold them.
        """
        return split.view(self.tap, self.group, view)


@dataclass(frozen=True)
class Selection:
    """Which tokens a head sees, as they were asked for and as they are."""

    name: str
    """Layer set, or list of layers."""
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    """Token kinds, such as ``cls`` or ``patches``."""
    parts: tuple[Part, ...]
    """In the order in which a head sees them; within a part, layer by layer."""
    views: tuple[str, ...] = (PLAIN_VIEW,)
    """Views of every image: each gives a head the same T tokens."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def tap(self) -> str:
        """Where in the blocks the tokens were taken; ``final`` if none is of a block."""
        return next((part.tap for part in self.parts if part.tap != FINAL), FINAL)

    def __str__(self) -> str:
        """Layers, token kinds and tap, for titles."""
        return f"{self.name}, {token_words(self.kinds, self.tap, self.views)}"

    @property
    def same_in_every_layer(self) -> bool:
        """Whether every layer has the same tokens, one layer's after those of another."""
        return all(part.group in (POOLED, *STATISTICS) for part in self.parts)

    @property
    def token_names(self) -> str:
        """Token kinds, such as ``cls+ap``."""
        return "+".join(self.kinds)

    def value_type(self, reader: SplitReader) -> str:
        """Return the type in which all parts are handed out: that of the reader, or float32 where the parts of int8 features differ."""
        types = {part.of(reader, self.views[0]).dtype for part in self.parts}
        return types.pop() if len(types) == 1 else "float32"

    def places(self) -> list[tuple[str, str]]:
        """Layer and kind of each of the T tokens."""
        return [
            (layer, token if part.group == POOLED else part.group)
            for part in self.parts
            for layer in part.layers
            for token in part.tokens
        ]


def token_words(kinds: Sequence[str], tap: str, views: Sequence[str] = (PLAIN_VIEW,)) -> str:
    """Token kinds, and the tap and the views unless they are the default: ``cls+ap``, ``cls+ap of mlp, views plain+flip``."""
    place = "" if tap in (DEFAULT_TAP, FINAL) else f" of {tap}"
    return "+".join(kinds) + place + ("" if tuple(views) == (PLAIN_VIEW,) else f", {view_words(views)}")


def view_words(views: Sequence[str]) -> str:
    """Name views for people: ``view flip``, ``views plain+flip``, ``9 views (plain+crop1+...+scale280)``."""
    if len(views) > MOST_NAMED:
        return f"{len(views)} views ({views[0]}+{views[1]}+...+{views[-1]})"
    return f"view{'s' if len(views) > 1 else ''} {'+'.join(views)}"


def array_selection(num_tokens: int, num_layers: int | None = None) -> Selection:
    """Name the T tokens of an array: those of L layers, layer by layer (by default L = T).

    Raises:
        RequestError: the tokens do not divide among the layers.
    """
    layers = num_layers or num_tokens
    if num_tokens % layers:
        raise RequestError(f"{num_tokens} tokens do not divide among {layers} layers")
    kinds = tuple(f"token{index}" for index in range(num_tokens // layers))
    names = tuple(str(index) for index in range(layers))
    return Selection("all", names, kinds, (Part(POOLED, names, kinds),))


def missing_tokens(cache: Cache, kinds: Sequence[str]) -> list[str]:
    """Those of `kinds` that a split lacks on the last layer."""
    return [
        kind
        for kind in kinds
        if not all(
            kind in split.arrays[FINAL].tokens
            if kind in TOKEN_KINDS
            else array_name(FINAL, kind) in split.arrays
            for split in cache.inventory.splits.values()
        )
    ]


def parse_kinds(text: str) -> tuple[str, ...]:
    """Class token and average in the order given, then the groups in that of `GROUPS`: one selection, one result."""
    groups = parse_groups(text)[1:]
    names = [name.strip() for name in text.replace("+", ",").split(",") if name.strip()]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise RequestError(f"token kind {', '.join(doubled)} is named more than once in {text!r}")
    return (*(name for name in names if name in TOKEN_KINDS), *groups)


def default_tokens(cache: Cache, head: "HeadInfo") -> tuple[str, ...]:
    """A head's own token kinds, as far as the backbone has them: some have no class token."""
    held = next(iter(cache.manifest.full_inventory.splits.values())).arrays[FINAL].tokens
    return tuple(kind for kind in head.default_tokens if kind in held) or held


def select(
    cache: Cache,
    layers: LayerSelection,
    kinds: Sequence[str],
    tap: str = DEFAULT_TAP,
    views: Sequence[str] = (),
) -> Selection:
    """Say which tokens of a cache are meant.

    Args:
        cache: the cache.
        layers: layer set or list of layers.
        kinds: token kinds, as `parse_kinds` returns them.
        tap: where in the blocks; the final layer is what follows the blocks at any tap.
        views: views of the images, or ``all``; see `featcache.store.views.choose_views`.

    Raises:
        UnknownNameError: a layer, token kind, tap or view does not exist or is not cached.
        RequestError: the cache lacks a split or a group of tokens, the final layer has another width than the blocks, or views have
            other numbers of tokens.
    """
    names = layers.of(cache.spec.backbone.num_layers)
    for split in SPLITS:
        if split not in cache.inventory.splits:
            raise RequestError(
                f"{cache.directory} holds no {split} split; the same `featcache extract` without --split adds it"
            )
    chosen = choose_views(views, tuple(cache.inventory.views), cache.spec.backbone.image_size)
    parts = _parts(cache, names, kinds, tap, chosen[0])
    for view in chosen[1:]:
        _require_alike(parts, _parts(cache, names, kinds, tap, view), chosen[0], view)
    return Selection(_set_name(layers, names, cache), names, tuple(kinds), tuple(parts), chosen)


def _parts(cache: Cache, names: tuple[str, ...], kinds: Sequence[str], tap: str, view: str) -> list[Part]:
    """Return the parts of one view, which both splits hold."""
    for split in SPLITS:
        _check_view(cache, split, view)
        _check_tap(cache, split, names, tap, view)
    parts = _layer_parts(cache, names, kinds, tap, view)
    parts += [
        _group_part(cache, group, names, tap, view)
        for group in kinds
        if group not in (*TOKEN_KINDS, *STATISTICS)
    ]
    for split in SPLITS:
        for part in parts:
            held = part.of(cache[split], view)
            for what, wanted, valid in (
                ("layer", part.layers, held.layers),
                ("token kind", part.tokens, held.tokens),
            ):
                for name in wanted:
                    if name not in valid:
                        hint = "" if view == PLAIN_VIEW else f" in the view {view}"
                        raise UnknownNameError(what, name, valid, f"(the cache holds no other{hint})")
    return parts


def _require_alike(parts: Sequence[Part], others: Sequence[Part], view: str, other: str) -> None:
    """Refuse views with other numbers of tokens: a head sees one number."""
    for mine, its in zip(parts, others, strict=True):
        if mine != its:
            raise RequestError(
                f"view {other} has {its.num_tokens} {its.group} tokens of layers {', '.join(its.layers)}, view {view} "
                f"{mine.num_tokens} of {', '.join(mine.layers)}, and a head sees one number; name one view, or leave {its.group} out "
                "of --tokens"
            )


def _array(tap: str, group: str, view: str) -> str:
    return array_name(tap, group, "" if view == PLAIN_VIEW else view)


def _check_view(cache: Cache, split: str, view: str) -> None:
    """Refuse a view that one split lacks."""
    held = cache[split].image_views
    if view not in held:
        raise RequestError(
            f"{cache.directory} holds no view {view} of the {split} split; the same `featcache extract` with --views {view} adds it"
        )


def _set_name(layers: LayerSelection, names: tuple[str, ...], cache: Cache) -> str:
    """One selection, one name: a list that is a layer set is called so."""
    if layers.set_name is not None:
        return layers.set_name
    depth = cache.spec.backbone.num_layers
    # Of a shallow backbone several sets are the same; the larger ones come last, and are what people mean.
    return next((one for one in reversed(LAYER_SETS) if layer_set(one, depth) == names), ",".join(names))


def _tap_of(layers: Sequence[str], tap: str) -> str:
    return FINAL if set(layers) == {FINAL} else tap


def _check_tap(cache: Cache, split: str, layers: Sequence[str], tap: str, view: str) -> None:
    """Refuse a tap that was not extracted, and a final layer beside blocks of another width: a head sees one."""
    if _tap_of(layers, tap) == FINAL:
        return
    arrays = cache.inventory.splits[split].arrays
    if _array(tap, POOLED, view) not in arrays:
        raise UnknownNameError(
            "tap",
            tap,
            [name for name in TAPS if _array(name, POOLED, view) in arrays],
            f"(the {split} split holds no other; the same `featcache extract` with --tap adds one)",
        )
    of_tap, of_final = arrays[_array(tap, POOLED, view)], arrays.get(_array(FINAL, POOLED, view))
    width, final = of_tap.row_shape[-1], (of_final or of_tap).row_shape[-1]
    if FINAL in layers and width != final:
        raise RequestError(
            f"a token of the tap {tap} has {width:,} channels, one of the final layer {final:,}, and a head sees one width; "
            f"name blocks alone, such as --layers {','.join(of_tap.layers[-2:])}"
        )


def _layer_parts(
    cache: Cache, names: tuple[str, ...], kinds: Sequence[str], tap: str, view: str
) -> list[Part]:
    """Return the parts of the token kinds that every layer has: class token, average, statistics.

    Statistics lie in arrays of their own. With them there is a part for every layer and array, so that the tokens of a layer stand
    together, as heads that tell layers apart need them.
    """
    pooled = tuple(kind for kind in kinds if kind in TOKEN_KINDS)
    statistics = [kind for kind in kinds if kind in STATISTICS]
    _check_statistics(cache, names, statistics, tap, view)
    runs = [(name,) for name in names] if statistics else [names]
    arrays = [(POOLED, pooled)] if pooled else []
    arrays += [(name, (name,)) for name in statistics]
    return [Part(group, run, tokens, _tap_of(run, tap)) for run in runs for group, tokens in arrays]


def _check_statistics(
    cache: Cache, layers: Sequence[str], statistics: Sequence[str], tap: str, view: str
) -> None:
    for split in SPLITS:
        arrays = cache.inventory.splits[split].arrays
        for name in statistics:
            for layer in layers:
                array = arrays.get(_array(_tap_of((layer,), tap), name, view))
                if array is None or layer not in array.layers:
                    raise RequestError(
                        f"{cache.directory} holds no {name} of layer {layer} of the {split} split; "
                        f"the same `featcache extract` with --tokens {'+'.join(statistics)} adds it"
                    )


def _group_part(cache: Cache, group: str, names: Sequence[str], tap: str, view: str) -> Part:
    """All tokens of a group in those of the layers that hold it."""
    for split in SPLITS:
        arrays = cache.inventory.splits[split].arrays
        if not any(_array(one, group, view) in arrays for one in (tap, FINAL)):
            raise RequestError(
                f"{cache.directory} holds no {group} of the {split} split; "
                f"the same `featcache extract` with --tokens {group} adds them"
            )
    arrays = cache.inventory.splits[SPLITS[0]].arrays
    tap = tap if _array(tap, group, view) in arrays else FINAL
    held = cache[SPLITS[0]].view(tap, group, view)
    layers = tuple(name for name in names if name in held.layers)
    if not layers:
        raise RequestError(f"the cache holds {group} of {', '.join(held.layers)}, none of which is asked for")
    return Part(group, layers, tuple(held.tokens), _tap_of(layers, tap))
