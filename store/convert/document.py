"""The document that an export carries about its cache, from which an import restores the same cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from featcache.store.convert.selection import Part
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field, text_list
from featcache.store.quantization import INT8
from featcache.store.reading.reader import Cache
from featcache.store.requests import recorded_requests
from featcache.store.spec import CacheSpec
from featcache.store.targets import Targets
from featcache.store.text import encodable

EXPORT_FORMAT = "featcache-export"
EXPORT_VERSION = 1
MAX_COUNT = 2**16
"""A larger batch or longer ids are not of featcache's making."""


@dataclass(frozen=True)
class ExportDocument:
    """The cache behind an export."""

    spec: CacheSpec
    targets: Targets
    """Kind, names and units of the targets."""
    batch_size: int
    names: Mapping[str, str]
    """Names for people of ``dataset`` and ``model``."""
    provenance: Mapping[str, Any]
    requests: Sequence[Mapping[str, Any]]
    digests: Mapping[str, str]
    """`ContentDigest` of every exported split."""
    layers: Mapping[str, tuple[str, ...]]
    """Exported layers of every split."""
    tokens: Mapping[str, tuple[str, ...]]
    """Exported token kinds of every split."""
    id_bytes: Mapping[str, int]
    """Bytes that a sample id takes in every split."""

    @property
    def restorable(self) -> bool:
        """Whether an import becomes the cache again: the codes of int8 features are not in an export, which holds decoded values."""
        return self.spec.dtype != INT8

    @classmethod
    def of(cls, cache: Cache, parts: Sequence[Part], digests: Mapping[str, str]) -> Self:
        """Describe an export of some parts of a cache."""
        folder = cache.directory.resolve()
        provenance = dict(cache.provenance)
        names = {"dataset": folder.parent.name, "model": folder.name.removesuffix(f"-{cache.key}")}
        names = {part: encodable(name) for part, name in names.items()}
        return cls(
            cache.spec,
            cache.inventory.targets,
            cache.manifest.batch_size,
            names,
            provenance,
            recorded_requests(cache.directory),
            digests,
            {part.name: part.layers for part in parts},
            {part.name: part.tokens for part in parts},
            {part.name: part.id_bytes for part in parts},
        )

    def to_dict(self) -> JsonObject:
        """Return the document as plain JSON values."""
        return {
            "format": EXPORT_FORMAT,
            "version": EXPORT_VERSION,
            "key": self.spec.key,
            "spec": self.spec.to_dict(),
            "class_names": list(self.targets.names),
            **self.targets.to_dict(),
            "batch_size": self.batch_size,
            "names": dict(self.names),
            "provenance": dict(self.provenance),
            "requests": [dict(request) for request in self.requests],
            "digests": dict(self.digests),
            "layers": {split: list(layers) for split, layers in self.layers.items()},
            "tokens": {split: list(tokens) for split, tokens in self.tokens.items()},
            "id_bytes": dict(self.id_bytes),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str) -> Self:
        """Read a document back; `where` names the file in errors.

        Raises:
            CacheError: a field is missing, of the wrong type, or of a version that this featcache cannot read.
        """
        version = field(document, "version", int, where)
        if document.get("format") != EXPORT_FORMAT or version != EXPORT_VERSION:
            raise CacheError(
                f"{where}: export version {version}; this featcache reads version {EXPORT_VERSION}"
            )
        names = field(document, "names", dict, where)
        layers, tokens = (field(document, name, dict, where) for name in ("layers", "tokens"))
        digests = field(document, "digests", dict, where)
        id_bytes = field(document, "id_bytes", dict, where)
        requests = field(document, "requests", list, where)
        return cls(
            CacheSpec.from_dict(field(document, "spec", dict, where), where),
            Targets.from_dict(document, text_list(document, "class_names", where), where),
            _read_count(document, "batch_size", where),
            {name: field(names, name, str, where) for name in ("dataset", "model")},
            field(document, "provenance", dict, where),
            [request for request in requests if isinstance(request, dict)],
            {split: field(digests, split, str, where) for split in layers},
            {split: text_list(layers, split, where) for split in layers},
            {split: text_list(tokens, split, where) for split in layers},
            {split: _read_count(id_bytes, split, where) for split in layers},
        )


def _read_count(document: Mapping[str, Any], name: str, where: str) -> int:
    value = int(field(document, name, int, where))
    if not 1 <= value <= MAX_COUNT:
        raise CacheError(f"{where}: field {name!r} must be from 1 to {MAX_COUNT}, got {value}")
    return value
