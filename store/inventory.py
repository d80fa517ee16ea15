"""The inventory: which splits and arrays a cache holds, and how they are laid out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Self

from featcache.store.arrays import DTYPES, MAX_BLOCK_ROWS, MIN_BLOCK_ROWS, ArrayInfo, block_rows
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field
from featcache.store.layers import FINAL

DEFAULT_TAP = "norm2"
SPLITS = ("train", "test")

# Far above any real cache, low enough that sizes computed from a forged inventory stay ordinary integers.
MAX_ARRAY_ELEMENTS = 2**48
# 537 million rows in the largest blocks. Blocks are enumerated, so a forged number of rows must not make them endless.
MAX_SPLIT_BLOCKS = 2**17


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
        """One block; `index` is from 0 to `num_blocks` - 1."""
        start = index * self.block_rows
        return Block(self.name, index, start, min(start + self.block_rows, self.num_samples))

    def blocks(self) -> list[Block]:
        """All blocks, in order."""
        return [self.block(index) for index in range(self.num_blocks)]

    def chunk_files(self, block: int) -> Iterator[tuple[ArrayInfo, str]]:
        """All chunk files of a block: the array and the path within features.zarr."""
        for array in self.arrays.values():
            for name in array.chunk_names(block):
                yield array, f"{self.name}/{array.name}/{name}"


@dataclass(frozen=True)
class Inventory:
    """What a cache holds."""

    splits: Mapping[str, SplitInventory]
    class_names: tuple[str, ...]
    """Name of every class, in label order."""

    def blocks(self) -> list[Block]:
        """All blocks of all splits, in the order in which they are extracted."""
        return [block for split in self.splits.values() for block in split.blocks()]

    @property
    def num_samples(self) -> int:
        """Samples of all splits."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all chunk files, padding included."""
        arrays = (array for split in self.splits.values() for array in split.arrays.values())
        return sum(array.chunk_bytes * array.files_per_block * array.num_blocks for array in arrays)

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
        return {"splits": splits, "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str) -> Self:
        """Read an inventory back; `where` names the file in errors.

        Raises:
            CacheError: a field is missing, of the wrong type or out of range.
        """
        splits = field(document, "splits", dict, where)
        return cls(
            splits={name: _split_from_dict(name, splits, where) for name in splits},
            class_names=_texts(document, "class_names", where),
        )


def plan_split(
    name: str,
    num_samples: int,
    *,
    layers: Sequence[str],
    tokens: Sequence[str],
    width: int,
    dtype: str,
    sample_id_bytes: int,
    tap: str = DEFAULT_TAP,
) -> SplitInventory:
    """Lay out one split of N = `num_samples` rows.

    Args:
        name: name of the split.
        num_samples: number of rows N.
        layers: block layers of the tap, in order; the final norm is always added, as an array of its own.
        tokens: token kinds K, in order.
        width: token width D.
        dtype: stored type of the features.
        sample_id_bytes: bytes of the longest sample id.
        tap: name of the tap, which becomes the name of its array.
    """
    rows = block_rows(num_samples)
    kinds = tuple(tokens)

    def token_array(array: str, layer_dimension: str, names: tuple[str, ...]) -> ArrayInfo:
        shape = (num_samples, len(names), len(kinds), width)
        return ArrayInfo(
            array, shape, rows, dtype, ("sample", layer_dimension, "token", "channel"), names, kinds
        )

    arrays = (
        token_array(tap, "block", tuple(layers)),
        # Its own dimension name: xarray wants one size per name in a group.
        token_array(FINAL, "final_layer", (FINAL,)),
        ArrayInfo("label", (num_samples,), rows, "int64", ("sample",)),
        ArrayInfo("sample_id", (num_samples, sample_id_bytes), rows, "uint8", ("sample", "byte")),
        ArrayInfo("valid", (num_samples,), rows, "bool", ("sample",)),
    )
    return SplitInventory(name, num_samples, rows, {array.name: array for array in arrays})


def _split_from_dict(name: str, splits: Mapping[str, Any], where: str) -> SplitInventory:
    where = f"{where}: split {name!r}"
    safe_name(name, where)
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
    _require_columns(arrays, where)
    for array in arrays.values():
        if array.shape[0] != num_samples:
            raise CacheError(
                f"{where}: array {array.name!r} has {array.shape[0]} rows, the split has {num_samples}"
            )
    return SplitInventory(name, num_samples, rows, arrays)


def _require_columns(arrays: Mapping[str, ArrayInfo], where: str) -> None:
    """Every split has the final layer, a label, an id and a validity for each row, in these types."""
    for name, dtype, rank in (("label", "int64", 1), ("sample_id", "uint8", 2), ("valid", "bool", 1)):
        array = arrays.get(name)
        if array is None or array.dtype != dtype or len(array.shape) != rank or array.layers:
            raise CacheError(f"{where}: array {name!r} must be there, {dtype} with {rank} dimensions")
    final = arrays.get(FINAL)
    if final is None or final.layers != (FINAL,):
        raise CacheError(f"{where}: array {FINAL!r} must be there, with the one layer {FINAL!r}")
    for array in arrays.values():
        if array.layers and (array.dtype, array.tokens) != (final.dtype, final.tokens):
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
    layers, tokens = (_texts(document, text, where) for text in ("layers", "tokens"))
    if layers and (len(shape) != 4 or shape[1:3] != (len(layers), len(tokens))):
        raise CacheError(
            f"{where}: field 'shape' {list(shape)} does not fit {len(layers)} layers of {len(tokens)} tokens"
        )
    names = _texts(document, "dimension_names", where)
    if len(names) != len(shape):
        raise CacheError(f"{where}: field 'dimension_names' must have {len(shape)} entries, got {len(names)}")
    return ArrayInfo(name, shape, rows, dtype, names, layers, tokens)


def _texts(document: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = field(document, name, list, where)
    if not all(isinstance(value, str) for value in values):
        raise CacheError(f"{where}: field {name!r} must be a list of strings")
    return tuple(values)


def safe_name(name: str, where: str) -> None:
    """Refuse a name that cannot be one plain folder: names from a foreign cache become paths.

    Raises:
        CacheError: the name has a path separator, dots alone, or unusual characters.
    """
    if not name or len(name) > 64 or not all(c.isascii() and (c.isalnum() or c in "_-") for c in name):
        raise CacheError(f"{where}: {name!r} is not a valid name (letters, digits, '_' and '-', at most 64)")
