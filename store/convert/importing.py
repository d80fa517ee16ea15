"""`featcache import`, as a function: any source through the real writer into a cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.store.catalogue import Entry, cache_directory, find_key
from featcache.store.convert.identity import card, carried_spec, foreign_spec, provenance
from featcache.store.convert.source import ImportSource, ImportSplit, check_agreement
from featcache.store.convert.steps import row_steps
from featcache.store.errors import CacheError, DatasetError
from featcache.store.inventory import DEFAULT_TAP, Inventory, SplitInventory
from featcache.store.journal import Plan
from featcache.store.layers import FINAL
from featcache.store.planning import plan_split
from featcache.store.progress import Reporter, Silent, Update
from featcache.store.requests import record_request
from featcache.store.spec import CacheSpec
from featcache.store.targets import Targets
from featcache.store.text import encodable
from featcache.store.writing.writer import CacheWriter

FOREIGN_BATCH = 1
"""Batch size of a cache that no forward pass of ours made: its blocks do not depend on it."""


@dataclass(frozen=True)
class ImportResult:
    """Result of an import."""

    path: Path
    key: str
    cached: bool
    """The cache was there already; nothing was written."""
    samples: int


def import_source(
    source: ImportSource,
    search: Sequence[Path],
    *,
    dataset: str | None,
    model: str | None,
    reporter: Reporter | None = None,
) -> ImportResult:
    """Make sure that a cache holds what `source` does.

    featcache's own export becomes the cache it came from, under the same key. Foreign features get a key of their own,
    which no extraction can have. The source is read twice: once to check and digest it, once to write.

    Args:
        source: what to import.
        search: roots to look in; a new cache goes under the first.
        dataset: name of the dataset; an own export brings one.
        model: name of the model; an own export brings one.
        reporter: receives progress.

    Raises:
        DatasetError: values are not finite, splits do not fit together, or an own export was changed.
        CacheError: a cache of the same key holds less, or an unfinished one was planned differently.
    """
    reporter = reporter or Silent()
    for note in source.notes:
        reporter.message(f"note: {note}")
    names = dict(source.document.names) if source.document else {"dataset": "imported", "model": "imported"}
    names |= {part: encodable(name) for part, name in (("dataset", dataset), ("model", model)) if name}
    check_agreement(source)
    total = sum(split.features.num_samples for split in source.splits)
    with reporter.progress("checking", "rows") as update:
        digests, done = {}, 0
        for split in source.splits:
            digests[split.name] = split.digest(update, done, total)
            done += split.features.num_samples
    spec = carried_spec(source, digests) or foreign_spec(source, digests, names["model"])
    entry = find_key(search, spec.key)
    if entry is not None and entry.complete:
        _check_covered(entry, source)
        return ImportResult(entry.path, spec.key, True, total)
    path = entry.path if entry else cache_directory(search[0], names["dataset"], names["model"], spec)
    splits = {split.name: _plan(split, spec, source.targets) for split in source.splits}
    batch_size = source.document.batch_size if source.document else FOREIGN_BATCH
    targets = source.targets
    inventory = Inventory(splits, targets.names, target_kind=targets.type, units=targets.units)
    plan = Plan(spec, inventory, batch_size)
    with CacheWriter(path, plan, say=reporter.message) as writer:
        with reporter.progress("importing", "rows") as update:
            _fill(writer, source, update, reporter)
        writer.finish(provenance(source, names), card(source, names, spec))
    for request in source.document.requests if source.document else ():
        record_request(path, request)
    return ImportResult(path, spec.key, False, total)


def _check_covered(entry: Entry, source: ImportSource) -> None:
    """Refuse to call a cache the answer that holds only a part of what is imported."""
    cache = entry.cache
    for split in source.splits:
        held = cache[split.name] if split.name in cache.inventory.splits else None
        if held is None or set(split.layers) - set(held.layers) or set(split.tokens) - set(held.tokens):
            raise CacheError(
                f"{entry.path} has the same key, but holds less than {source.where} (split {split.name}); "
                f"remove it first: featcache rm {entry.path}"
            )


def _fill(writer: CacheWriter, source: ImportSource, update: Update, reporter: Reporter) -> None:
    splits = {split.name: split for split in source.splits}
    total, done = writer.plan.inventory.num_samples, 0
    while True:
        while (block := writer.claim()) is not None:
            split = splits[block.block.split]
            for start, stop in row_steps(
                block.block.start + block.rows, block.block.stop, split.features.row_bytes
            ):
                values = split.features.read(start, stop)
                arrays = (
                    {DEFAULT_TAP: values[:, :-1], FINAL: values[:, -1:]}
                    if len(split.layers) > 1
                    else {FINAL: values}
                )
                block.append(arrays | {name: column[start:stop] for name, column in split.columns.items()})
                done += stop - start
                update(done, total)
            writer.commit(block)
        if writer.pending():
            reporter.message(f"waiting for {len(writer.pending())} blocks that other processes import")
        if not writer.wait():
            return


def _plan(split: ImportSplit, spec: CacheSpec, targets: Targets) -> SplitInventory:
    if split.layers[-1] != FINAL:
        raise DatasetError(
            f"split {split.name} lacks layer final, which every cache holds; export it as well"
        )
    return plan_split(
        split.name,
        split.features.num_samples,
        layers=split.layers[:-1],
        tokens=split.tokens,
        width=split.features.width,
        dtype=spec.dtype,
        sample_id_bytes=split.columns["sample_id"].shape[1],
        num_layers=spec.backbone.num_layers,
        targets=targets,
    )
