"""The caches that a head was trained on, as its head.json describes them: enough to make the same tokens of other images.

The cache itself may be gone, or on another machine, when the head is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, read_sealed, text_list
from featcache.store.files import field as value_of
from featcache.store.provenance import PROVENANCE_FILE
from featcache.store.reading.reader import Cache
from featcache.store.spec import CacheSpec
from featcache.store.views import View

Parts = Sequence[tuple[str, Sequence[str], Sequence[str]]]
"""Array, layers and tokens of each part of a head's tokens."""


@dataclass(frozen=True)
class HeadSource:
    """One of the caches that a head was trained on."""

    spec: CacheSpec
    """Backbone with preprocessing, identity of the dataset, stored type and precision."""
    parts: Parts
    """The parts of the head's tokens that come from this cache, in the order in which the head sees them."""
    batch_size: int
    """Images in a forward pass of the extraction."""
    views: Sequence[View] = ()
    """Parameters of the head's views besides the plain one."""
    model_names: Sequence[str] = ()
    """Names of the model, as given and as resolved; empty where the cache's provenance could not be read."""
    weights_source: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the weights: ``origin`` (``hub``, ``url``, ``file`` or ``memory``) and what goes with it."""

    @property
    def cache_key(self) -> str:
        """Key of the cache."""
        return self.spec.key

    @classmethod
    def of(cls, cache: Cache, parts: Parts, views: Sequence[View] = ()) -> Self:
        """Describe an open cache, of which a head sees some parts and views."""
        try:
            provenance = read_sealed(cache.directory / PROVENANCE_FILE)
        except (OSError, CacheError):  # the head is none the worse for it
            provenance = {}
        names, weights = provenance.get("model_names"), provenance.get("weights_source")
        return cls(
            cache.spec,
            parts,
            cache.manifest.batch_size,
            views,
            names if isinstance(names, list) else (),
            weights if isinstance(weights, dict) else {},
        )

    def to_dict(self) -> JsonObject:
        """Return the source as plain JSON values."""
        return {
            "cache_key": self.cache_key,
            "spec": self.spec.to_dict(),
            "parts": [list(part) for part in self.parts],
            "batch_size": self.batch_size,
            "views": {view.name: view.to_dict() for view in self.views},
            "model_names": list(self.model_names),
            "weights_source": dict(self.weights_source),
        }

    @classmethod
    def from_dict(cls, document: Any, where: str) -> Self:
        """Read a source back; `where` names the file in errors.

        Raises:
            CacheError: a field is missing, of the wrong type, or the key is not that of the spec.
        """
        if not isinstance(document, dict):
            raise CacheError(f"{where}: a source must be an object, got {type(document).__name__}")
        spec = CacheSpec.from_dict(value_of(document, "spec", dict, where), where)
        if value_of(document, "cache_key", str, where) != spec.key:
            raise CacheError(f"{where}: the key of a source is not that of its spec ({spec.key})")
        return cls(
            spec,
            [tuple(part) for part in value_of(document, "parts", list, where)],
            value_of(document, "batch_size", int, where),
            [
                View.from_dict(name, view, where)
                for name, view in value_of(document, "views", dict, where).items()
            ],
            text_list(document, "model_names", where),
            value_of(document, "weights_source", dict, where),
        )
