"""The inventory: which splits and arrays a cache holds, and how they are laid out."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from dataclasses import field as field_of
from itertools import pairwise
from math import prod
from typing import Any, Self

from featcache.store.arrays import DTYPES, MAX_BLOCK_ROWS, MIN_BLOCK_ROWS, ArrayInfo
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field, text_list
from featcache.store.layers import FINAL
from featcache.store.quantization import INT8, int8_arrays, is_scale_name, scale_arrays
from featcache.store.targets import SINGLE_LABEL, Targets
from featcache.store.token_groups import STATISTICS, parse_array_name, split_view
from featcache.store.views import View

DEFAULT_TAP = "norm2"
TAPS = (DEFAULT_TAP, "block", "attn", "mlp", "norm1")
"""The points that can be tapped in a block: the second norm (the paper's), the block itself, its attention before any scaling, the
hidden activation of its MLP (what the MLP's last projection takes), the first norm."""
SPLITS = ("train", "test")
PROJECTION = "projection"

# Far above any real cache, low enough that sizes computed from a forged inventory stay ordinary integers.
MAX_ARRAY_ELEMENTS = 2**48
# Wider than any model; 256 MiB at most.
MAX_PROJECTION_SIDE = 2**13
# 537 million rows in the largest blocks. Blocks are enumerated, so a forged number of rows must not make them endless.
MAX_SPLIT_BLOCKS = 2**17
MAX_SAMPLE_ID_BYTES = 2**16


@dataclass(frozen=True)
class Block:
    """One block of rows of one split: the unit of writing, committing and resuming."""

    split: str
    index: int
    start: int
    stop: int
    """Rows ``start`` up to, not including, ``stop`` of the split."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class SplitInventory:
    """The arrays of one split. All of them share rows and blocks."""

    name: str
    num_samples: int
    block_rows: int
    arrays: Mapping[str, ArrayInfo]

    @property
    def num_blocks(self) -> int:
        """Number of blocks of rows."""
        return -(-self.num_samples // self.block_rows)

    def block(self, index: int) -> Block:
        """Return one block; `index` is from 0 to `num_blocks` - 1."""
        start = index * self.block_rows
        return Block(self.name, index, start, min(start + self.block_rows, self.num_samples))

    def blocks(self) -> list[Block]:
        """Return all blocks, in order."""
        return [self.block(index) for index in range(self.num_blocks)]

    def chunk_files(self, block: int) -> Iterator[tuple[ArrayInfo, str]]:
        """Yield all chunk files of a block: the array and the path within features.zarr."""
        for array in self.arrays.values():
            for name in array.chunk_names(block):
                yield array, f"{self.name}/{array.name}/{name}"


@dataclass(frozen=True)
class Inventory:
    """The splits, arrays and layers of a cache."""

    splits: Mapping[str, SplitInventory]
    class_names: tuple[str, ...]
    """Name of every class, in label order; of every quantity, where targets are real values."""
    projection: tuple[int, int] | None = None
    """Shape ``[D, E]`` of the matrix that the model multiplies its pooled token with, if it has one."""
    target_kind: str = SINGLE_LABEL
    """``single-label``, ``multi-label``, ``regression`` or ``none``."""
    units: tuple[str, ...] = ()
    """Unit of every quantity of a regression, where known."""
    views: Mapping[str, View] = field_of(default_factory=dict)
    """Views besides the plain one that some array belongs to, by name."""

    @property
    def targets(self) -> Targets:
        """Kind, names and units of the targets, and how labels are stored."""
        return Targets(self.target_kind, self.class_names, self.units)

    @property
    def projection_array(self) -> ArrayInfo | None:
        """The projection as an array of one chunk, beside the splits."""
        if self.projection is None:
            return None
        return ArrayInfo(PROJECTION, self.projection, self.projection[0], "float32", ("channel", "projected"))

    @property
    def format_version(self) -> int:
        """Version of the format that a reader of a cache with this inventory must know.

        It is 3 for statistics tokens, views, int8 features and caches without labels, else 2.
        """
        needs_3 = not self.targets.labeled or any(_needs_version_3(array) for array in self._token_arrays)
        return 3 if needs_3 or self.views else 2

    @property
    def int8_arrays(self) -> dict[str, ArrayInfo]:
        """The arrays of int8 features by name; splits share the scales of a name."""
        return int8_arrays(self._token_arrays)

    @property
    def scale_arrays(self) -> tuple[ArrayInfo, ...]:
        """The scales and offsets of int8 features, arrays of one chunk each beside the splits."""
        return tuple(scale_arrays(self._token_arrays))

    @property
    def arrays_beside_splits(self) -> tuple[ArrayInfo, ...]:
        """The arrays that belong to no split, each of one chunk: the projection, scales and offsets."""
        projection = self.projection_array
        return (*((projection,) if projection else ()), *self.scale_arrays)

    @property
    def _token_arrays(self) -> list[ArrayInfo]:
        return [array for split in self.splits.values() for array in split.arrays.values() if array.layers]

    def blocks(self) -> list[Block]:
        """Return all blocks of all splits, in the order in which they are extracted."""
        return [block for split in self.splits.values() for block in split.blocks()]

    @property
    def num_samples(self) -> int:
        """Samples of all splits."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all chunk files, padding included."""
        arrays = [array for split in self.splits.values() for array in split.arrays.values()]
        arrays += self.arrays_beside_splits
        return sum(array.chunk_bytes * array.files_per_block * array.num_blocks for array in arrays)

    def covers(self, other: "Inventory") -> bool:
        """Return whether all of `other` is held."""
        lacking = other.minus(self)
        return not lacking.splits and lacking.projection is None

    def minus(self, held: "Inventory") -> "Inventory":
        """Return the splits, arrays and layers of this inventory that `held` lacks.

        Raises:
            CacheError: both hold an array of the same name that differs in more than its layers.
        """
        splits = {
            name: lacking
            for name, split in self.splits.items()
            if (lacking := _minus(split, held.splits.get(name))).arrays
        }
        lacks_projection = held.projection is None
        for name, view in self.views.items():
            if name in held.views:
                view.require_same(held.views[name], "the inventory")
        return replace(
            self,
            splits=splits,
            projection=self.projection if lacks_projection else None,
            views=_used(self.views, splits),
        )

    def plus(self, added: "Inventory") -> "Inventory":
        """Return this inventory and what `added` holds beyond it, in an order that tells nothing of what came first.

        Raises:
            CacheError: as for `minus`.
        """
        news = added.minus(self).splits
        names = sorted({*self.splits, *news}, key=lambda name: (name not in SPLITS, name != SPLITS[0], name))
        splits = {name: _plus(self.splits.get(name), news.get(name)) for name in names}
        return replace(
            self,
            splits=splits,
            projection=self.projection or added.projection,
            views=_used({**added.views, **self.views}, splits),
        )

    def select(self, splits: Collection[str], layers: Mapping[str, Collection[str]]) -> "Inventory":
        """Return some splits, with some layers of some arrays and all columns (labels, ids, ``valid``).

        Args:
            splits: names of the splits.
            layers: wanted layers by name of the array; an array without wanted layers is left out.
        """
        chosen = {
            name: replace(split, arrays=dict(_cut(split.arrays.values(), layers)))
            for name, split in self.splits.items()
            if name in splits
        }
        return replace(self, splits=chosen, views=_used(self.views, chosen))

    def common(self, other: "Inventory") -> "Inventory":
        """Return the splits, arrays and layers that both inventories have.

        Raises:
            CacheError: as for `minus`.
        """
        return self.minus(self.minus(other))

    def to_dict(self) -> JsonObject:
        """Return the inventory as plain JSON values."""
        splits = {
            split.name: {
                "num_samples": split.num_samples,
                "block_rows": split.block_rows,
                "arrays": {
                    array.name: {
                        "shape": list(array.shape),
                        "dtype": array.dtype,
                        "dimension_names": list(array.dimension_names),
                        "layers": list(array.layers),
                        "tokens": list(array.tokens),
                    }
                    for array in split.arrays.values()
                },
            }
            for split in self.splits.values()
        }
        projection = {"projection": list(self.projection)} if self.projection else {}
        views = {"views": {view.name: view.to_dict() for view in self.views.values()}} if self.views else {}
        return {
            "splits": splits,
            "class_names": list(self.class_names),
            **self.targets.to_dict(),
            **projection,
            **views,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str, *, whole: bool = True) -> Self:
        """Read an inventory back; `where` names the file in errors.

        Args:
            document: the JSON object.
            where: names the file in errors.
            whole: the inventory of a cache, whose splits all have their columns and the final layer; not that of an
                addition to one.

        Raises:
            CacheError: a field is missing, of the wrong type or out of range.
        """
        splits = field(document, "splits", dict, where)
        targets = Targets.from_dict(document, text_list(document, "class_names", where), where)
        inventory = cls(
            splits={name: _split_from_dict(name, splits, where) for name in splits},
            class_names=targets.names,
            projection=_projection(document, where),
            target_kind=targets.type,
            units=targets.units,
            views=_views(document, where),
        )
        _require_views(inventory, where)
        if sum(split.num_blocks for split in inventory.splits.values()) > MAX_SPLIT_BLOCKS:
            raise CacheError(f"{where}: field 'splits' makes more than 2**17 blocks in all")
        _require_shared_scales(inventory._token_arrays, where)
        if whole:
            inventory.require_columns(where)
        return inventory

    def require_version(self, spec: Mapping[str, Any], where: str) -> None:
        """Hold the format version that a document's spec declares to what this inventory holds.

        Raises:
            CacheError: the versions differ.
        """
        declared = field(spec, "format_version", int, where)
        if declared != self.format_version:
            raise CacheError(
                f"{where}: format version {declared}, but what the inventory holds has version {self.format_version}"
            )

    def require_spec(self, width: int, num_layers: int, dtype: str, where: str) -> None:
        """Hold the token arrays to the spec's width D, number of layers L and stored type.

        Raises:
            CacheError: one differs.
        """
        for split in self.splits.values():
            for array in split.arrays.values():
                spot = f"{where}: split {split.name!r}: array {array.name!r}"
                if array.layers and array.dtype != dtype:
                    raise CacheError(f"{spot}: field 'dtype' is {array.dtype!r}, the spec has {dtype!r}")
                if split_view(array.name)[1] in (DEFAULT_TAP, FINAL):
                    if not array.layers:
                        raise CacheError(f"{spot}: field 'layers' is empty; it is an array of tokens")
                    if array.shape[3] != width:
                        raise CacheError(
                            f"{spot}: its width is {array.shape[3]}, the spec's field 'width' {width}"
                        )
                if array.layers and array.layers != (FINAL,) and array.shape[1] != num_layers:
                    raise CacheError(
                        f"{spot}: field 'shape' has {array.shape[1]} layers, the spec has {num_layers}"
                    )

    def require_columns(self, where: str) -> None:
        """Refuse a cache in which a split lacks its columns or the final layer.

        Raises:
            CacheError: one does.
        """
        for split in self.splits.values():
            _require_columns(split.arrays, self.targets, f"{where}: split {split.name!r}")


def _needs_version_3(array: ArrayInfo) -> bool:
    return array.dtype == INT8 or parse_array_name(array.name)[1] in STATISTICS


def _require_shared_scales(arrays: Iterable[ArrayInfo], where: str) -> None:
    """Refuse int8 arrays of one name that differ between splits: they share their scales."""
    forms: dict[str, tuple[object, ...]] = {}
    for array in (array for array in arrays if array.dtype == INT8):
        form = (array.shape[1:], array.tokens, array.dimension_names)
        if forms.setdefault(array.name, form) != form:
            raise CacheError(f"{where}: array {array.name!r} differs between splits, which share its scales")


def _projection(document: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    if "projection" not in document:
        return None
    shape = field(document, "projection", list, where)
    if len(shape) != 2 or not all(type(n) is int and 1 <= n <= MAX_PROJECTION_SIDE for n in shape):
        raise CacheError(
            f"{where}: field 'projection' must be two numbers from 1 to {MAX_PROJECTION_SIDE}, got {str(shape)[:60]}"
        )
    return shape[0], shape[1]


def _views(document: Mapping[str, Any], where: str) -> dict[str, View]:
    if "views" not in document:
        return {}
    documents = field(document, "views", dict, where)
    return {name: View.from_dict(name, documents[name], where) for name in sorted(documents)}


def _view_names(splits: Mapping[str, SplitInventory]) -> set[str]:
    """Return the names of the views that arrays of `splits` belong to; columns belong to none."""
    return {
        view
        for split in splits.values()
        for array in split.arrays.values()
        if array.layers and (view := split_view(array.name)[0])
    }


def _used(views: Mapping[str, View], splits: Mapping[str, SplitInventory]) -> dict[str, View]:
    """Return the views that arrays of `splits` belong to, by name."""
    return {name: views[name] for name in sorted(_view_names(splits))}


def _require_views(inventory: Inventory, where: str) -> None:
    """Refuse an array of a view that is not stated, and a view without arrays."""
    odd = sorted(_view_names(inventory.splits) ^ inventory.views.keys())
    if odd:
        what = "has no array" if odd[0] in inventory.views else "is not stated, and an array belongs to it"
        raise CacheError(f"{where}: field 'views': view {odd[0]!r} {what}")


def _cut(
    arrays: Iterable[ArrayInfo], wanted: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, ArrayInfo]]:
    for array in arrays:
        layers = tuple(layer for layer in array.layers if layer in wanted.get(array.name, ()))
        if layers or not array.layers:
            yield array.name, replace(array, layers=layers)


def _minus(split: SplitInventory, held: SplitInventory | None) -> SplitInventory:
    if held is None:
        return split
    if (held.num_samples, held.block_rows) != (split.num_samples, split.block_rows):
        raise CacheError(
            f"split {split.name!r} has {split.num_samples} samples, the cache holds {held.num_samples}"
        )
    lacking = {}
    for array in split.arrays.values():
        mine = held.arrays.get(array.name)
        if mine is None:
            lacking[array.name] = array
            continue
        if replace(mine, layers=array.layers) != array:
            raise CacheError(f"array {array.name!r} of split {split.name!r} is of another form in the cache")
        layers = tuple(layer for layer in array.layers if layer not in mine.layers)
        if layers:
            lacking[array.name] = replace(array, layers=layers)
    return replace(split, arrays=lacking)


def _plus(split: SplitInventory | None, added: SplitInventory | None) -> SplitInventory:
    """Return either split, or the union of both where `added` holds nothing that `split` does."""
    parts = [part for part in (split, added) if part is not None]
    arrays: dict[str, ArrayInfo] = {}
    for array in (array for part in parts for array in part.arrays.values()):
        layers = {*array.layers, *(arrays[array.name].layers if array.name in arrays else ())}
        arrays[array.name] = replace(array, layers=tuple(sorted(layers, key=array.position)))
    return replace(parts[0], arrays=dict(sorted(arrays.items())))


def _split_from_dict(name: str, splits: Mapping[str, Any], where: str) -> SplitInventory:
    where = f"{where}: split {name!r}"
    safe_name(name, where)
    if name == PROJECTION or is_scale_name(name):
        raise CacheError(f"{where}: no split can have this name")
    document = field(splits, name, dict, where)
    num_samples = field(document, "num_samples", int, where)
    rows = field(document, "block_rows", int, where)
    if not 1 <= num_samples <= MAX_ARRAY_ELEMENTS:
        raise CacheError(f"{where}: field 'num_samples' must be from 1 to 2**48, got {num_samples}")
    if not MIN_BLOCK_ROWS <= rows <= MAX_BLOCK_ROWS or rows & (rows - 1):
        raise CacheError(f"{where}: field 'block_rows' must be a power of two from 128 to 4096, got {rows}")
    if num_samples > MAX_SPLIT_BLOCKS * rows:
        raise CacheError(
            f"{where}: field 'num_samples' {num_samples} makes more than 2**17 blocks of {rows} rows"
        )
    documents = field(document, "arrays", dict, where)
    arrays = {array: _array_from_dict(array, documents, rows, where) for array in documents}
    for array in arrays.values():
        if array.shape[0] != num_samples:
            raise CacheError(
                f"{where}: array {array.name!r} has {array.shape[0]} rows, the split has {num_samples}"
            )
    return SplitInventory(name, num_samples, rows, arrays)


def _require_columns(arrays: Mapping[str, ArrayInfo], targets: Targets, where: str) -> None:
    """Check that every split has the final layer, an id, a validity and, if labeled, a label for each row, in these types."""
    width = (
        arrays["sample_id"].shape[1] if "sample_id" in arrays and len(arrays["sample_id"].shape) == 2 else 0
    )
    if width > MAX_SAMPLE_ID_BYTES:
        raise CacheError(
            f"{where}: array 'sample_id' has ids of {width} bytes, more than {MAX_SAMPLE_ID_BYTES}"
        )
    columns = [("sample_id", "uint8", 2), ("valid", "bool", 1)]
    if targets.labeled:
        columns.insert(0, ("label", targets.dtype, 1 + len(targets.row_shape)))
    elif "label" in arrays:
        raise CacheError(
            f"{where}: there is an array 'label', but field 'targets' says that there are no labels"
        )
    for name, dtype, rank in columns:
        array = arrays.get(name)
        if array is None or array.dtype != dtype or len(array.shape) != rank or array.layers:
            raise CacheError(f"{where}: array {name!r} must be there, {dtype} with {rank} dimensions")
    if targets.labeled and arrays["label"].row_shape != targets.row_shape:
        raise CacheError(
            f"{where}: array 'label' has {arrays['label'].row_shape[0]} columns, there are {len(targets.names)} names"
        )
    final = arrays.get(FINAL)
    if final is None or final.layers != (FINAL,):
        raise CacheError(f"{where}: array {FINAL!r} must be there, with the one layer {FINAL!r}")
    for array in arrays.values():
        same_tokens = split_view(array.name)[1] not in (DEFAULT_TAP, FINAL) or array.tokens == final.tokens
        if array.layers and not (array.dtype == final.dtype and same_tokens):
            raise CacheError(f"{where}: array {array.name!r} differs from {FINAL!r} in type or tokens")


def _array_from_dict(name: str, arrays: Mapping[str, Any], rows: int, where: str) -> ArrayInfo:
    where = f"{where}: array {name!r}"
    safe_name(name, where)
    document = field(arrays, name, dict, where)
    shape = tuple(field(document, "shape", list, where))
    if not shape or not all(type(n) is int and 1 <= n <= MAX_ARRAY_ELEMENTS for n in shape):
        raise CacheError(f"{where}: field 'shape' must be a list of positive integers, got {list(shape)}")
    if prod(shape) > MAX_ARRAY_ELEMENTS:
        raise CacheError(f"{where}: field 'shape' {list(shape)} has more than 2**48 elements")
    dtype = field(document, "dtype", str, where)
    if dtype not in DTYPES:
        raise CacheError(f"{where}: field 'dtype' must be one of {', '.join(DTYPES)}, got {dtype!r}")
    layers, tokens = (text_list(document, text, where) for text in ("layers", "tokens"))
    if layers:
        if len(shape) != 4 or shape[2] != len(tokens):
            raise CacheError(f"{where}: field 'shape' {list(shape)} does not fit {len(tokens)} tokens")
        if not _fit_axis(layers, shape[1]):
            raise CacheError(
                f"{where}: field 'layers' must be {FINAL!r} alone, or blocks below {shape[1]} in order, got {str(layers)[:60]}"
            )
        for token in tokens:
            safe_name(token, f"{where}: field 'tokens'")
        if len(set(tokens)) < len(tokens):
            raise CacheError(f"{where}: field 'tokens' names one twice")
    names = text_list(document, "dimension_names", where)
    if len(names) != len(shape):
        raise CacheError(f"{where}: field 'dimension_names' must have {len(shape)} entries, got {len(names)}")
    return ArrayInfo(name, shape, rows, dtype, names, layers, tokens)


def _fit_axis(layers: tuple[str, ...], depth: int) -> bool:
    """Return whether `layers` are the final one on an axis of 1, or indices on an axis of `depth`, in order."""
    if FINAL in layers:
        return layers == (FINAL,) and depth == 1
    # Lengths first: a forged number of a million digits must not be parsed, and the axis never listed.
    if not all(len(layer) <= 7 and layer.isascii() and layer.isdigit() for layer in layers):
        return False
    indices = [int(layer) for layer in layers]
    canonical = [str(index) for index in indices] == list(layers)
    return canonical and indices[-1] < depth and all(a < b for a, b in pairwise(indices))


def safe_name(name: str, where: str) -> None:
    """Refuse a name that cannot be one plain folder: names from a foreign cache become paths.

    Raises:
        CacheError: the name has a path separator, dots alone, or unusual characters.
    """
    if not name or len(name) > 64 or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        raise CacheError(f"{where}: {name!r} is not a valid name (letters, digits, '_' and '-', at most 64)")
