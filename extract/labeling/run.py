"""`featcache label`, as a function: a new cache with the features of another one and labels from a table."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.extraction.labeling.request import LABELS, LabelRequest
from featcache.extraction.labeling.table import LabelTable, read_label_table
from featcache.extraction.provenance.dataset_card import about_dataset
from featcache.extraction.provenance.document import card
from featcache.extraction.provenance.public_names import public_name
from featcache.extraction.reuse.content_records import ContentRecords
from featcache.extraction.sources.base import Citation, Labels
from featcache.store.catalogue import Entry, cache_directory, find_key
from featcache.store.errors import CacheError, IncompleteCacheError, PartialCacheError
from featcache.store.files import JsonObject, canonical_json, sha256_file, sha256_hex
from featcache.store.manifest import manifest_digest
from featcache.store.progress import Reporter
from featcache.store.reading.reader import Cache, open_cache
from featcache.store.shared_card import CARD_FILE
from featcache.store.spec import CacheSpec
from featcache.store.writing.labeled import labeled_inventory, write_labeled
from featcache.store.writing.writer import CacheWriter

_TERMS = "\n## Dataset\n"
"""Section of a card on license and citation."""


@dataclass(frozen=True)
class LabelResult:
    """Result of attaching labels."""

    path: Path
    key: str
    cached: bool
    """The cache was there already; nothing was written."""
    samples: int
    copied_files: int
    """Feature files that were copied, because no hard link could be made; 0 where all are linked."""
    targets: JsonObject
    """Kind, names and units."""

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values."""
        return {
            "path": str(self.path),
            "key": self.key,
            "cached": self.cached,
            "samples": self.samples,
            "copied_files": self.copied_files,
            "targets": self.targets,
        }


def attach_labels(
    entry: Entry, table_path: Path, request: LabelRequest, search: Sequence[Path], reporter: Reporter
) -> LabelResult:
    """Make sure that there is a cache with the features of `entry` and the labels of a table.

    Args:
        entry: the cache, complete and whole.
        table_path: CSV file with a row for each sample.
        request: how the table is read.
        search: roots to look in; a new cache goes under the first.
        reporter: receives messages.

    Raises:
        IncompleteCacheError, PartialCacheError: the cache is not whole.
        RequestError, DatasetError: the table is not one of labels for all samples of the cache; nothing is written.
        CacheError: the cache is damaged.
    """
    if not entry.complete:
        raise IncompleteCacheError(f"{entry.path} is not complete; finish its extraction first")
    cache = open_cache(entry.path)
    if cache.partial:
        raise PartialCacheError(
            f"{entry.path} is a partial copy; pull the rest of it first: featcache pull ADDRESS"
        )
    table = read_label_table(table_path, request)
    labels = table.by_split(cache, table_path)
    for note in table.notes:
        reporter.message(f"note: {note}")
    if cache.inventory.targets.labeled:
        reporter.message(
            f"note: {entry.path} has labels; the new cache has those of {table_path.name} instead"
        )
    spec = _labeled_spec(cache.spec, table, labels)
    samples, targets = cache.inventory.num_samples, table.targets.describe()
    found = find_key(search, spec.key)
    if found is not None and found.complete:
        if not found.cache.inventory.covers(labeled_inventory(cache.inventory, table.targets)):
            raise CacheError(
                f"{found.path} was labeled when {entry.path} held less, or is a partial copy; remove it, and attach the labels again: "
                f"featcache rm {found.path}"
            )
        return LabelResult(found.path, spec.key, True, samples, 0, targets)
    path = found.path if found else cache_directory(search[0], entry.dataset, entry.model, spec)

    def documents(writer: CacheWriter) -> tuple[Mapping[str, Any], str]:
        return _provenance(cache, table_path, table), _card(cache, writer)

    # What files hold does not depend on labels, so rows of the new cache can be taken over as quickly as those of the first.
    ContentRecords.load(cache.key).keep(spec.key)
    copied = write_labeled(cache, path, spec, table.targets, labels, documents, reporter.message)
    return LabelResult(path, spec.key, False, samples, copied, targets)


def _labeled_spec(spec: CacheSpec, table: LabelTable, labels: Mapping[str, Labels]) -> CacheSpec:
    """Return the spec of the cache with these labels: the identity of its dataset has their digest as well."""
    content = {
        **table.targets.describe(),
        "labels": {split: sha256_hex(values.tobytes()) for split, values in labels.items()},
    }
    return replace(spec, dataset={**spec.dataset, LABELS: sha256_hex(canonical_json(content))})


def _provenance(cache: Cache, path: Path, table: LabelTable) -> JsonObject:
    attached_at = round(time.time(), 3)
    return {
        **cache.provenance,
        # The cache that commands take where none is named is the one completed last.
        "completed_at": attached_at,
        "labels": {
            "from": {"key": cache.key, "digest": manifest_digest(cache.manifest)},
            "table": public_name(path.name),
            "sha256": sha256_file(path),
            "columns": list(table.columns),
            "attached_at": attached_at,
            "features_completed_at": cache.provenance.get("completed_at"),
        },
    }


def _card(cache: Cache, writer: CacheWriter) -> str:
    names = {
        kind: _names(cache, f"{kind}_names") or [fallback]
        for kind, fallback in (
            ("model", cache.spec.backbone.architecture),
            ("dataset", cache.directory.parent.name),
        )
    }
    text = card(writer.plan, names, about_dataset(writer, Citation()))
    try:
        _, heading, terms = (cache.directory / CARD_FILE).read_text(encoding="utf-8").partition(_TERMS)
    except (OSError, UnicodeError):
        return text
    return f"{text}{heading}{terms}"


def _names(cache: Cache, field: str) -> list[str]:
    names = cache.provenance.get(field)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
