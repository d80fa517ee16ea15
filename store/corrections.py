"""Corrections of values that earlier versions stored, and the caches that they concern.

A correction that changes stored values also changes the identity or the spec for exactly the inputs concerned, so an older
cache is never taken for the answer. An entry here lets `info` and `verify` report such a cache, and is a second guard where
the key is the same.

Only faults that a cache shows are listed. A cache does not show whether a table had splits that were passed over, or whether
a weights file held averaged weights too. New caches for such inputs have another key, so the old ones are never an answer.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featcache.store.spec import CacheSpec
from featcache.store.targets import Targets

FIELD = "corrections"
"""Field of provenance.json: names of the corrections known when the cache was made."""

Provenance = Mapping[str, Any]
_TRAIN = frozenset(("train", "training"))
_SPLITS = _TRAIN | {"test", "testing", "val", "valid", "validation"}
_SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin"))
_MISSING = frozenset(("NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NULL", "null", "None", "#N/A"))


@dataclass(frozen=True)
class Correction:
    """One correction."""

    name: str
    """Short name, never changed: caches made later list it in their provenance."""
    what: str
    """The wrong values, as the end of a sentence that begins with "made before"."""
    concerns: Callable[[CacheSpec, Targets], bool]
    """Return whether a cache made before the correction holds such values."""
    same_key: bool = False
    """True if the corrected values have the same key. Otherwise a request with the old key asks for the old values, as with
    ``?splits=none`` or ``?missing=class``."""


def _is_of(kind: str, spec: CacheSpec) -> bool:
    return spec.dataset.get("kind") == kind


def _has_splits_as_classes(spec: CacheSpec, targets: Targets) -> bool:
    names = {name.casefold() for name in targets.names}
    return _is_of("imagefolder", spec) and len(names) > 1 and names <= _SPLITS and bool(names & _TRAIN)


def _has_thumbnails(spec: CacheSpec, targets: Targets) -> bool:
    names = {name.casefold() for name in targets.names}
    return _is_of("imagefolder", spec) and not names.isdisjoint(_SYSTEM_FOLDERS)


def _has_one_class_twice(spec: CacheSpec, targets: Targets) -> bool:
    names = set(targets.names)
    return _is_of("csv", spec) and any(re.fullmatch(r"\d+\.0", n) and n[:-2] in names for n in names)


def _has_missing_labels(spec: CacheSpec, targets: Targets) -> bool:
    return _is_of("csv", spec) and not _MISSING.isdisjoint(targets.names)


CORRECTIONS: tuple[Correction, ...] = (
    Correction(
        "folders of splits",
        "folders such as Train and Test were read as splits: they are its classes",
        _has_splits_as_classes,
    ),
    Correction(
        "system folders",
        "folders of file servers and archivers were left out: one is a class of it",
        _has_thumbnails,
    ),
    Correction("numbers as classes", "1 and 1.0 were read as one class", _has_one_class_twice),
    Correction(
        "missing labels",
        "labels such as NA and nan were taken for missing: one is a class of it",
        _has_missing_labels,
    ),
)
"""All corrections so far, in order."""


def known_corrections() -> list[str]:
    """Return the names of all corrections, for the provenance of a new cache."""
    return [correction.name for correction in CORRECTIONS]


def warnings_of(
    spec: CacheSpec, targets: Targets, provenance: Provenance, *, as_answer: bool = False
) -> list[str]:
    """Return sentences on the corrections that concern a cache made before them; empty if its values are right.

    Args:
        spec: spec of the cache.
        targets: targets of the cache.
        provenance: provenance of the cache; empty while the cache is incomplete, and then nothing is reported.
        as_answer: only corrections that disqualify a cache as the answer to a request with the same key.
    """
    if not provenance:
        return []
    known = provenance.get(FIELD)
    names = known if isinstance(known, list) else []
    return [
        f"made before {correction.what}; extract it again"
        for correction in CORRECTIONS
        if correction.name not in names
        and correction.concerns(spec, targets)
        and (correction.same_key or not as_answer)
    ]
