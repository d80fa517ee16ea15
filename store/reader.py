"""Reading a cache: chunk files are mapped, nothing is decoded, nothing is unpickled.

Imports neither zarr nor torch. Values are equal to what any Zarr v3 reader gives; the memory map is only faster.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store import journal
from featcache.store.arrays import DTYPES, ArrayInfo
from featcache.store.errors import CacheError, CacheNotFoundError, IncompleteCacheError, UnknownNameError
from featcache.store.files import JsonObject, read_sealed
from featcache.store.inventory import DEFAULT_TAP, Block, SplitInventory
from featcache.store.journal import FEATURES, Plan
from featcache.store.layers import FINAL
from featcache.store.manifest import Manifest
from featcache.store.writer import PROVENANCE_FILE
from featcache.store.zarr_metadata import METADATA_FILE, check_array_metadata

Array = npt.NDArray[Any]


class Cache:
    """A cache opened for reading. ``cache["train"]`` is a `SplitReader`."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.spec = manifest.spec
        self.inventory = manifest.inventory

    @property
    def key(self) -> str:
        """The cache's key."""
        return self.spec.key

    @cached_property
    def provenance(self) -> JsonObject:
        """Where the cache comes from; empty while it is incomplete.

        Raises:
            CacheError: provenance.json is damaged.
        """
        try:
            return read_sealed(self.directory / PROVENANCE_FILE)
        except FileNotFoundError:
            return {}

    def __getitem__(self, split: str) -> "SplitReader":
        """Return one split.

        Raises:
            UnknownNameError: the cache does not hold it.
        """
        if split not in self.inventory.splits:
            raise UnknownNameError("split", split, self.inventory.splits)
        committed = [record.block for record in self.manifest.blocks if record.block.split == split]
        return SplitReader(self.directory / FEATURES, self.inventory.splits[split], committed)

    def __repr__(self) -> str:
        rows = ", ".join(f"{split.name} {split.num_samples}" for split in self.inventory.splits.values())
        return f"Cache({self.key}: {self.spec.backbone.architecture}, {rows} samples)"


class SplitReader:
    """The rows of one split. Features come in the stored type, bfloat16 as its uint16 bits."""

    def __init__(self, features: Path, inventory: SplitInventory, committed: Sequence[Block]) -> None:
        self._features = features
        self._committed = committed
        self._checked: set[str] = set()
        self.inventory = inventory
        self.num_samples = inventory.num_samples

    @property
    def dtype(self) -> str:
        """Value type of the features: ``float16``, ``float32`` or ``bfloat16``."""
        return self.inventory.arrays[FINAL].dtype

    @property
    def width(self) -> int:
        """Token width D."""
        return self.inventory.arrays[FINAL].shape[3]

    @property
    def tokens(self) -> tuple[str, ...]:
        """Token kinds that are cached."""
        return self.inventory.arrays[FINAL].tokens

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names that are cached, in order."""
        tap = self.inventory.arrays.get(DEFAULT_TAP)
        return (*(tap.layers if tap else ()), FINAL)

    def labels(self) -> npt.NDArray[np.int64]:
        """Class index of every row: int64 ``[N]``, -1 in rows that are not committed."""
        return self._column("label")

    def valid(self) -> npt.NDArray[np.bool_]:
        """Which rows hold features: bool ``[N]``."""
        return self._column("valid")

    def sample_ids(self) -> list[str]:
        """Id of every row, empty for rows that are not committed."""
        return [row.tobytes().rstrip(b"\0").decode() for row in self._column("sample_id")]

    def load(self, layers: Sequence[str], tokens: Sequence[str], out: Array | None = None) -> Array:
        """Read the features of all rows.

        Args:
            layers: layer names, in the order wanted.
            tokens: token kinds, in the order wanted.
            out: buffer of shape ``[N, layers, tokens, D]`` in the stored type to read into; made if not given.

        Returns:
            The buffer. Rows that are not committed are NaN.

        Raises:
            UnknownNameError: a layer or token kind is not cached.
            CacheError: a file is missing or of the wrong size.
        """
        kinds = self._token_indices(tokens)
        located = [self._locate(layer) for layer in layers]
        out = self._buffer((self.num_samples, len(layers), len(tokens), self.width), out)
        self._fill_uncommitted(out)
        for block in self._committed:
            for position, (array, index) in enumerate(located):
                chunk = self._map(array, block, index)
                out[block.start : block.stop, position] = chunk[: block.rows, kinds]
        return out

    def gather(
        self, rows: npt.ArrayLike, layers: Sequence[str], tokens: Sequence[str], out: Array | None = None
    ) -> Array:
        """Read the features of some rows, in the order asked; arguments and errors as for `load`.

        Args:
            rows: integer ``[B]``, in any order, repeats allowed.
            layers: layer names, in the order wanted.
            tokens: token kinds, in the order wanted.
            out: buffer of shape ``[B, layers, tokens, D]`` in the stored type.

        Raises:
            IndexError: a row is outside the split.
        """
        wanted = np.asarray(rows, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.num_samples):
            raise IndexError(f"rows must be from 0 to {self.num_samples - 1}")
        kinds = self._token_indices(tokens)
        located = [self._locate(layer) for layer in layers]
        out = self._buffer((len(wanted), len(layers), len(tokens), self.width), out)
        self._fill_uncommitted(out)
        block_of = wanted // self.inventory.block_rows
        for block in self._committed:
            places = np.flatnonzero(block_of == block.index)
            if not places.size:
                continue
            inside = wanted[places] - block.start
            for position, (array, index) in enumerate(located):
                out[places, position] = self._map(array, block, index)[:, kinds][inside]
        return out

    def _fill_uncommitted(self, out: Array) -> None:
        if len(self._committed) < len(self.inventory.blocks()):
            out[...] = np.frombuffer(DTYPES[self.dtype].fill_bytes, out.dtype)[0]

    def _column(self, name: str) -> Array:
        array = self.inventory.arrays[name]
        out = np.full(array.shape, DTYPES[array.dtype].fill, array.stored_dtype)
        for block in self._committed:
            out[block.start : block.stop] = self._map(array, block, 0)[: block.rows]
        return out

    def _map(self, array: ArrayInfo, block: Block, layer_index: int) -> Array:
        folder = self._features / self.inventory.name / array.name
        if array.name not in self._checked:
            check_array_metadata(folder / METADATA_FILE, array)
            self._checked.add(array.name)
        path = folder / array.chunk_name(block.index, layer_index)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise CacheError(f"{path}: missing; the cache is damaged, extract it again") from None
        if size != array.chunk_bytes:
            raise CacheError(
                f"{path}: {size} bytes, must be {array.chunk_bytes}; the cache is damaged, extract it again"
            )
        return np.memmap(path, array.stored_dtype, "r", shape=(array.block_rows, *array.row_shape))

    def _locate(self, layer: str) -> tuple[ArrayInfo, int]:
        for array in (self.inventory.arrays.get(DEFAULT_TAP), self.inventory.arrays[FINAL]):
            if array is not None and layer in array.layers:
                return array, array.layers.index(layer)
        raise UnknownNameError("layer", layer, self.layers, "(the cache holds no other)")

    def _token_indices(self, tokens: Sequence[str]) -> slice | list[int]:
        for kind in tokens:
            if kind not in self.tokens:
                raise UnknownNameError("token kind", kind, self.tokens, "(the cache holds no other)")
        indices = [self.tokens.index(kind) for kind in tokens]
        # A slice is a view of the map; a list would copy it.
        consecutive = indices == list(range(indices[0], indices[0] + len(indices))) if indices else False
        return slice(indices[0], indices[-1] + 1) if consecutive else indices

    def _buffer(self, shape: tuple[int, ...], out: Array | None) -> Array:
        dtype = self.inventory.arrays[FINAL].stored_dtype
        if out is None:
            return np.empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype:
            raise ValueError(f"out must be {dtype} of shape {shape}, got {out.dtype} of shape {out.shape}")
        return out


def as_float32(values: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Return stored features as float32, whatever their value type `dtype` is."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def open_cache(directory: str | Path, *, allow_partial: bool = False) -> Cache:
    """Open the cache at `directory` for reading.

    Args:
        directory: folder of the cache, the one that holds manifest.json.
        allow_partial: also open a cache whose extraction has not finished; see `SplitReader.valid`.

    Raises:
        CacheNotFoundError: there is no cache.
        IncompleteCacheError: the extraction has not finished; the message says what is missing.
        CacheError: its metadata are damaged.
    """
    directory = Path(directory)
    try:
        return Cache(directory, Manifest.read(directory))
    except FileNotFoundError:
        pass
    partial = read_partial(directory)
    if not allow_partial:
        raise IncompleteCacheError(describe_missing(directory, partial))
    return Cache(directory, partial)


def read_partial(directory: Path) -> Manifest:
    """Read what an unfinished extraction has committed so far.

    Raises:
        CacheNotFoundError: no extraction was started here.
        CacheError: its plan is damaged.
    """
    try:
        plan = Plan.read(directory)
    except FileNotFoundError:
        raise CacheNotFoundError(
            f"{directory}: no cache here (no manifest.json, and no extraction was started)"
        ) from None
    return Manifest(
        plan.spec, plan.inventory, plan.batch_size, journal.committed(directory, plan.inventory), {}
    )


def describe_missing(directory: Path, partial: Manifest) -> str:
    """Say which blocks an unfinished cache lacks, and what to do."""
    missing = partial.missing_blocks()
    total = len(partial.inventory.blocks())
    spots: Mapping[str, list[str]] = {
        split: [str(block.index) for block in missing if block.split == split]
        for split in partial.inventory.splits
    }
    listed = "; ".join(
        f"{split}: {', '.join(indices[:8])}{', ...' if len(indices) > 8 else ''}"
        for split, indices in spots.items()
        if indices
    )
    return (
        f"{directory} is incomplete: {len(missing)} of {total} blocks are missing ({listed}). "
        "Run the same `featcache extract` again to finish it."
    )
