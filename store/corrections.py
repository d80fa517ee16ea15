"""Corrections of values that earlier versions stored, and which caches they concern.

A correction that changes stored values comes with an identity or a spec of its own for exactly the inputs concerned, so
that the cache of before is never taken for the answer. An entry here lets `info` and `verify` say so of such a cache,
and is a second guard: a cache that is concerned is never an answer, whatever its key is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featcache.store.spec import CacheSpec

FIELD = "corrections"
"""Field of provenance.json: names of the corrections that were known when the cache was made."""

Provenance = Mapping[str, Any]


@dataclass(frozen=True)
class Correction:
    """One correction."""

    name: str
    """Short name, never changed: caches made later list it in their provenance."""
    what: str
    """The wrong values, as the end of a sentence that begins with "made before"."""
    concerns: Callable[[CacheSpec, Provenance], bool]
    """Whether a cache that was made before holds, or may hold, such values. It must not raise: provenance comes from anywhere."""


CORRECTIONS: tuple[Correction, ...] = ()
"""All corrections so far, in order."""


def known_corrections() -> list[str]:
    """Names of all corrections, for the provenance of a cache that is made now."""
    return [correction.name for correction in CORRECTIONS]


def warnings_of(spec: CacheSpec, provenance: Provenance) -> list[str]:
    """Sentences on the corrections that concern a cache and that it was made before; empty if it is as it should be."""
    known = provenance.get(FIELD)
    names = known if isinstance(known, list) else []
    return [
        f"made before {correction.what}; extract it again"
        for correction in CORRECTIONS
        if correction.name not in names and correction.concerns(spec, provenance)
    ]
