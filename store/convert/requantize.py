"""`featcache convert`, as a function: an int8 cache of a cache of floats, without the images and the backbone."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen

from featcache.store.arrays import ArrayInfo
from featcache.store.catalogue import cache_directory, find_key
from featcache.store.convert.steps import row_steps
from featcache.store.errors import CacheCompletedError, CacheError, RequestError
from featcache.store.files import JsonObject
from featcache.store.inventory import SPLITS, Inventory
from featcache.store.journal import Plan
from featcache.store.parameters import one_of, parameter
from featcache.store.partial_copy import require_complete_copy
from featcache.store.progress import Reporter, Silent
from featcache.store.provenance import CARD_DIGEST
from featcache.store.quantization import INT8, MISSING_CODE, RangeFit, Scales
from featcache.store.reading.dtype_loss import Features, LayerLoss, LossSum
from featcache.store.reading.reader import Cache, require_files
from featcache.store.reading.split import SplitReader
from featcache.store.spec import CacheSpec
from featcache.store.token_groups import parse_array_name
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.pending import require_space
from featcache.store.writing.writer import CacheWriter

CONVERTIBLE = (INT8,)


@frozen(kw_only=True)
class ConvertRequest:
    """The stored type of the new cache.

    Raises:
        UnknownNameError: there is no such type to convert to.
    """

    dtype: str = field(
        default=INT8,
        validator=one_of("dtype", CONVERTIBLE),
        metadata=parameter(
            "Stored type of the new cache: int8, with a scale and an offset for each layer, token kind and channel.",
            "--dtype",
        ),
    )


@dataclass(frozen=True)
class ConvertResult:
    """Result of a conversion."""

    path: Path
    """Folder of the new cache."""
    key: str
    cached: bool
    """The cache was there already; nothing was written."""
    samples: int
    """Samples that this run converted; the loss is that of these."""
    losses: Sequence[LayerLoss]
    """Loss against the cache that was converted, by array, layer and token kind."""

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values."""
        return {
            "path": str(self.path),
            "key": self.key,
            "cached": self.cached,
            "samples": self.samples,
            "dtype_loss": [loss.to_dict() for loss in self.losses],
        }


def convert(
    cache: Cache, request: ConvertRequest, search: Sequence[Path], *, reporter: Reporter | None = None
) -> ConvertResult:
    """Make sure that there is an int8 cache of `cache`; an interrupted conversion resumes at its last committed block.

    The scales are fitted on all samples of train. The new cache has a key of its own, which says what it was converted from: an
    extraction rounds exact features, and fits on a sample.

    Args:
        cache: the cache, complete.
        request: what to convert to.
        search: roots to look in; a new cache goes under the first.
        reporter: receives messages and progress.

    Raises:
        RequestError: the cache is int8 already, or it holds views.
        PartialCacheError: it is a partial copy.
        CacheError: a file of it is damaged, or a conversion from before holds less than the cache does now.
        NotEnoughSpaceError: the disk has too little room.
    """
    reporter = reporter or Silent()
    if cache.spec.dtype == request.dtype:
        raise RequestError(
            f"{cache.directory} is stored as {request.dtype} already; nothing is to be converted"
        )
    if cache.inventory.views:
        raise RequestError(
            f"{cache.directory} holds the views {', '.join(cache.inventory.views)}, which cannot be stored as {request.dtype}; extract "
            "a cache without views, and convert that"
        )
    require_complete_copy(cache.directory, "converted")
    require_files(cache)
    spec = replace(cache.spec, dtype=request.dtype, converted_from=cache.spec.dtype)
    inventory = _as_int8(cache.inventory)
    entry = find_key(search, spec.key)
    if entry is not None and entry.complete:
        if not entry.cache.inventory.covers(inventory):
            raise CacheError(
                f"{entry.path} was converted when {cache.directory} held less; remove it, and convert again: featcache rm {entry.path}"
            )
        return ConvertResult(entry.path, spec.key, True, 0, ())
    path = entry.path if entry is not None else _directory(cache, spec, search[0])
    require_space(path, inventory)
    run = _Conversion(cache, reporter)
    try:
        with CacheWriter(
            path,
            Plan(spec, inventory, cache.manifest.batch_size),
            projection=cache.projection(),
            fit=run.fit,
            say=reporter.message,
        ) as writer:
            run.fill(writer)
            writer.finish(_provenance(cache, run), _card(cache, spec))
    except CacheCompletedError:
        return ConvertResult(path, spec.key, True, 0, ())
    return ConvertResult(path, spec.key, False, run.samples, run.losses())


class _Conversion:
    """Fits scales and converts blocks, and sums up the loss."""

    def __init__(self, cache: Cache, reporter: Reporter) -> None:
        self._cache = cache
        self._reporter = reporter
        self._losses: dict[str, LossSum] = {}
        self._columns: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        self.samples = 0
        self.values = 0
        self.clipped: dict[str, int] = {}

    def fit(self, arrays: Sequence[ArrayInfo]) -> dict[str, Scales]:
        """Return the scales of `arrays`, fitted on all rows of train that hold features."""
        split = SPLITS[0] if SPLITS[0] in self._cache else next(iter(self._cache))
        valid, scales = self._cache[split].valid(), {}
        if not valid.any():
            raise CacheError(f"{self._cache.directory}: split {split!r} holds no features to fit int8 on")
        held = self._cache.inventory.splits[split].arrays
        missing = [
            f"layer {layer} of {array.name}"
            for array in arrays
            for layer in layers_of(self._cache.inventory, array.name)
            if array.name not in held or layer not in held[array.name].layers
        ]
        if missing:
            raise CacheError(
                f"{self._cache.directory}: split {split!r}, which int8 is fitted on, lacks {', '.join(missing[:5])}, which another split "
                "holds; extract it first"
            )
        with self._reporter.progress("fitting", "arrays") as update:
            for done, array in enumerate(arrays):
                update(done, len(arrays))
                ranges, view = RangeFit(array), self._cache[split].view(*parse_array_name(array.name))
                layers = held[array.name].layers
                for layer in layers:
                    for start, stop in row_steps(0, len(valid), _layer_bytes(view)):
                        values = _features(view, start, stop, [layer])
                        ranges.add(values[valid[start:stop]], [array.position(layer)])
                scales[array.name] = ranges.scales()
            update(len(arrays), len(arrays))
        return scales

    def fill(self, writer: CacheWriter) -> None:
        """Convert blocks until all are committed, by this process or another."""
        total = writer.plan.inventory.num_samples
        while True:
            with self._reporter.progress("converting", "rows") as update:
                while (block := writer.claim()) is not None:
                    for rows in self._convert(block, writer.scales):
                        self.samples += rows
                        update(self.samples, total)
                    writer.commit(block)
            if writer.pending():
                self._reporter.message(
                    f"waiting for {len(writer.pending())} blocks that other processes convert"
                )
            if not writer.wait():
                return

    def _convert(self, block: BlockWriter, scales: Mapping[str, Scales]) -> Iterator[int]:
        """Append the rows that a block lacks; yields the number of rows after every step."""
        where = block.block
        reader, arrays = self._cache[where.split], self._cache.inventory.splits[where.split].arrays
        row_bytes = sum(a.files_per_block * a.chunk_bytes // a.block_rows for a in arrays.values())
        columns, turned = self._columns_of(reader), self._cache.manifest.orientations(where.split)
        # Features are float32 several times over while they are encoded and compared.
        for start, stop in row_steps(where.start + block.rows, where.stop, 16 * row_bytes):
            values: dict[str, np.ndarray[Any, Any]] = {}
            for name, array in arrays.items():
                if not array.layers:
                    values[name] = columns[name][start:stop]
                    continue
                view = reader.view(*parse_array_name(name))
                exact = _features(view, start, stop, array.layers)
                part = scales[name].of([array.position(layer) for layer in array.layers])
                values[name] = self._encode(array, exact, columns["valid"][start:stop], part)
            block.append(values, "".join(map(str, turned[start:stop].tolist())))
            yield stop - start

    def _encode(
        self, array: ArrayInfo, exact: Features, valid: "np.ndarray[Any, Any]", scales: Scales
    ) -> "np.ndarray[Any, Any]":
        """Return the codes of some rows of an array, and add their loss."""
        codes, beyond = scales.encode(np.where(valid[:, None, None, None], exact, scales.offset))
        stored = scales.decode(codes)[valid]
        sums = self._losses.setdefault(array.name, LossSum(array.tokens))
        sums.add(array.layers, exact[valid], stored, stored, beyond[valid])
        self.values += int(valid.sum()) * exact[0].size
        self.clipped[array.name] = self.clipped.get(array.name, 0) + int(beyond[valid].sum())
        codes[~valid] = MISSING_CODE
        return codes

    def _columns_of(self, reader: SplitReader) -> "Mapping[str, np.ndarray[Any, Any]]":
        arrays, name = reader.inventory.arrays.values(), reader.inventory.name
        if name not in self._columns:  # read once, not again for every block
            self._columns = {name: {a.name: reader.column(a.name) for a in arrays if not a.layers}}
        return self._columns[name]

    def losses(self) -> list[LayerLoss]:
        """Return the loss of the rows that were converted."""
        return [loss for name, sums in sorted(self._losses.items()) for loss in sums.losses(name)]


def layers_of(inventory: Inventory, array: str) -> list[str]:
    """Return the layers of an array that any split holds."""
    splits = [split.arrays[array].layers for split in inventory.splits.values() if array in split.arrays]
    return list(dict.fromkeys(layer for layers in splits for layer in layers))


def _as_int8(inventory: Inventory) -> Inventory:
    splits = {
        split.name: replace(
            split,
            arrays={
                name: replace(array, dtype=INT8) if array.layers else array
                for name, array in split.arrays.items()
            },
        )
        for split in inventory.splits.values()
    }
    return replace(inventory, splits=splits)


def _features(view: SplitReader, start: int, stop: int, layers: Sequence[str]) -> Features:
    # Read, not mapped: every page is needed once, and mapped ones would count as memory of this process.
    return view.gather(np.arange(start, stop), layers, view.tokens, method="read", dtype="float32")


def _layer_bytes(view: SplitReader) -> int:
    return 8 * len(view.tokens) * view.width


def _directory(cache: Cache, spec: CacheSpec, root: Path) -> Path:
    folder = cache.directory.resolve()
    return cache_directory(root, folder.parent.name, folder.name.removesuffix(f"-{cache.key}"), spec)


def _provenance(cache: Cache, run: _Conversion) -> JsonObject:
    """Return the provenance of the cache that was converted, with the conversion; its additions are part of the new cache."""
    source = {name: value for name, value in cache.provenance.items() if name != CARD_DIGEST}
    now = round(time.time(), 3)
    converted = {"key": cache.key, "dtype": cache.spec.dtype, "at": now}
    counts = {"values": run.values, "clipped": dict(sorted(run.clipped.items()))}
    return {**source, "completed_at": now, "converted_from": converted, "int8_of_last_run": counts}


def _card(cache: Cache, spec: CacheSpec) -> str:
    """Return the README.md of the new cache."""
    folder, backbone = cache.directory.resolve(), spec.backbone
    dataset, model = folder.parent.name, folder.name.removesuffix(f"-{cache.key}")
    rows = "\n".join(f"| {split.name} | {split.num_samples} |" for split in cache.inventory.splits.values())
    return f"""# {dataset}, features of {model}

Converted to {spec.dtype} by featcache from the {cache.spec.dtype} cache {cache.key}. Read it with `featcache probe`,
`featcache.open(DIR)`, or any Zarr v3 reader (`features.zarr`; the attribute `quantization` of an array says how to decode it).

| | |
|---|---|
| backbone | {backbone.architecture} ({backbone.num_layers} blocks, width {backbone.width}, {backbone.input_size} px) |
| key | {spec.key} |
| stored as | {spec.dtype}, forward pass in {spec.precision} |
| classes | {len(cache.inventory.class_names)} |

| split | samples |
|---|---|
{rows}
"""
