"""Reading a cache: chunk files are mapped, nothing is decoded, nothing is unpickled.

Imports neither zarr nor torch. Values are equal to what any Zarr v3 reader gives; the memory map is only faster.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.store import journal
from featcache.store.errors import (
    CacheError,
    CacheNotFoundError,
    IncompleteCacheError,
    PartialCacheError,
    UnknownSplitError,
)
from featcache.store.files import JsonObject, read_sealed
from featcache.store.home import expanded
from featcache.store.inventory import Inventory
from featcache.store.journal import FEATURES, JOURNAL, Plan
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.partial_copy import PartialCopy, describe_partial, missing_command, read_partial_manifest
from featcache.store.provenance import PROVENANCE_FILE
from featcache.store.reading.chunks import Array
from featcache.store.reading.projection import read_projection
from featcache.store.reading.split import SplitReader as SplitReader
from featcache.store.regular_files import refuse_link


class Cache(Mapping[str, SplitReader]):
    """A cache opened for reading: a mapping of the splits' names to a `SplitReader` each, such as ``cache["train"]``.

    Two open caches are equal only if they are the same object; compare `key` to know whether they hold the same values.
    """

    __hash__ = object.__hash__
    __eq__ = object.__eq__  # a mapping's would compare the readers

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.spec = manifest.spec
        self.inventory = manifest.inventory
        self._splits: dict[str, SplitReader] = {}

    @property
    def key(self) -> str:
        """The cache's key."""
        return self.spec.key

    @cached_property
    def provenance(self) -> JsonObject:
        """Provenance of the cache; empty while it is incomplete.

        Raises:
            CacheError: provenance.json is damaged.
        """
        try:
            return read_sealed(self.directory / PROVENANCE_FILE)
        except FileNotFoundError:
            return {}

    def projection(self) -> npt.NDArray[np.float32] | None:
        """Return the matrix ``[D, E]`` that the model multiplies its pooled token with; None if it has none.

        Raises:
            CacheError: the file is missing or of another size, or its Zarr metadata differ.
        """
        return read_projection(self.directory / FEATURES, self.inventory)

    @property
    def partial(self) -> bool:
        """Whether this is a partial copy; `inventory` then is what it holds."""
        return self.manifest.whole is not None

    def require(self, needed: Inventory) -> None:
        """Refuse a partial copy that lacks some of `needed`, which the whole cache has.

        Raises:
            PartialCacheError: it lacks some; the message has the command that fetches it.
        """
        lacking = needed.minus(self.inventory)
        if not self.partial or not (lacking.splits or lacking.projection):
            return
        held = PartialCopy.read(self.directory)
        origin = held.origin if held else ""
        raise PartialCacheError(
            f"{self.directory} holds only a part of the cache ({describe_partial(self.inventory, self.manifest.full_inventory)}); "
            f"fetch what is missing first: {missing_command(self.directory, lacking, origin)}"
        )

    def __getitem__(self, split: str) -> SplitReader:
        """Return one split, the same object every time: it keeps its maps.

        Raises:
            UnknownSplitError: the cache does not hold it; also a `KeyError`.
        """
        if split not in self.inventory.splits:
            hint = "(the others are not in this partial copy)" if self.partial else ""
            raise UnknownSplitError("split", str(split), self.inventory.splits, hint)
        if split not in self._splits:
            committed = [record.block for record in self.manifest.blocks if record.block.split == split]
            reader = SplitReader(
                self.directory / FEATURES,
                self.inventory.splits[split],
                committed,
                self.inventory.targets,
            )
            self._splits[split] = reader
        return self._splits[split]

    def __contains__(self, split: object) -> bool:
        """Return whether the cache holds a split of this name."""
        return split in self.inventory.splits

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the splits, as over a mapping."""
        return iter(self.inventory.splits)

    def __len__(self) -> int:
        """Number of splits."""
        return len(self.inventory.splits)

    def __array__(self, *args: object, **options: object) -> Array:
        """Refuse to become an array.

        Raises:
            TypeError: always; the message says what to call.
        """
        splits = ", ".join(repr(split) for split in self)
        raise TypeError(
            f"a cache is no array: take a split ({splits}), and call its load(layers, tokens) for an array [N, L, K, D]"
        )

    def __repr__(self) -> str:
        rows = ", ".join(f"{split.name} {split.num_samples}" for split in self.inventory.splits.values())
        return f"Cache({self.key}: {self.spec.backbone.architecture}, {rows} samples)"


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
    directory = expanded(directory)
    try:
        return Cache(directory, read_partial_manifest(directory))
    except FileNotFoundError:
        pass
    try:
        partial = read_partial(directory)
    except FileNotFoundError:
        if not (directory / MANIFEST_FILE).exists():
            raise
    # A writer completes the cache first and takes the journal away then, perhaps while it was read.
    if (directory / MANIFEST_FILE).exists():
        return Cache(directory, read_partial_manifest(directory))
    if not allow_partial:
        raise IncompleteCacheError(describe_missing(directory, partial))
    return Cache(directory, partial)


def read_partial(directory: Path) -> Manifest:
    """Read what an unfinished extraction has committed so far.

    Raises:
        CacheNotFoundError: no extraction was started here.
        CacheError: its plan is damaged.
    """
    refuse_link(directory / JOURNAL)
    try:
        plan = Plan.read(directory)
    except FileNotFoundError:
        raise CacheNotFoundError(
            f"{directory}: no cache here (no manifest.json, and no extraction was started)"
        ) from None
    plan.inventory.require_columns(str(directory / journal.JOURNAL / journal.PLAN_FILE))
    return Manifest(
        plan.spec, plan.inventory, plan.batch_size, journal.committed(directory, plan.inventory), plan.scales
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
    lacks = (
        f"{len(missing)} of {total} blocks are missing ({listed})" if missing else "its documents are missing"
    )
    return f"{directory} is incomplete: {lacks}. Run the same `{extraction_command(directory, partial)}` again to finish it."


def extraction_command(directory: Path, manifest: Manifest) -> str:
    """Return the command that makes this cache, or finishes an incomplete one."""
    imported = manifest.spec.dataset.get("kind") == "imported"
    with suppress(FileNotFoundError, CacheError):
        imported = imported or "imported_from" in read_sealed(directory / PROVENANCE_FILE)
    if manifest.spec.converted_from is not None:
        return "featcache convert"
    return "featcache import" if imported else "featcache extract"


def require_files(cache: Cache) -> None:
    """Check that every chunk file is there in full size; their content is `featcache verify`'s business.

    Raises:
        CacheError: a file is missing or of another size; the message says what to do.
    """
    for record in cache.manifest.blocks:
        for name, file in record.files.items():
            path = cache.directory / FEATURES / name
            mismatch = file.mismatch(path)
            if mismatch:
                raise CacheError(
                    f"{path}: {mismatch}; the cache is damaged: `featcache verify --repair {cache.directory}` drops the damaged "
                    "blocks, and the same extract redoes them"
                )
