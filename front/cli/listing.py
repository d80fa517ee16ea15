"""The table of ``featcache ls``, which is the same for a root and for a remote."""

import time

from featcache.store.files import JsonObject
from featcache.terminal.console import format_duration, format_size

COLUMNS = ("dataset", "model", "key", "state", "train", "test", "layers", "size", "age")
NUMERIC = COLUMNS[4:]


def table_row(document: JsonObject) -> list[str]:
    """Return the cells of a cache; those of numbers are empty for one that is damaged or still being pushed."""
    names = [document[name] or "" for name in COLUMNS[:4]]
    if "samples" not in document:
        return [*names, *[""] * len(NUMERIC)]
    samples = [str(document["samples"].get(split, "")) for split in ("train", "test")]
    modified = document["modified"]  # which not every remote tells
    age = "" if modified is None else format_duration(max(0.0, time.time() - modified))
    return [*names, *samples, str(document["layers"]), format_size(document["bytes"]), age]


def none_found(model: str | None, dataset: str | None) -> str:
    """Return the beginning of the line that replaces an empty table."""
    filters = [text for text in (model, dataset) if text]
    return f"no caches that match {' and '.join(filters)}" if filters else "no caches"
