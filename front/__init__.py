"""featcache: all-layer token features of frozen vision transformers, cached once; heads trained from the cache.

    cache = featcache.extract("dinov2-vit-s-14", "imagefolder:photos")
    rows = featcache.probe(cache, "attentive")
    head = featcache.load_head(f"featcache-results/{rows[-1].folder}")

The names in `__all__` are the public interface; everything else may change between versions. Importing this package
imports no torch and no numpy: a name is loaded when it is used first.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from featcache.moved import install as _install

if TYPE_CHECKING:
    from featcache.api.extraction import extract
    from featcache.api.heads import load_head
    from featcache.api.opening import open
    from featcache.api.probing import probe

__all__ = ["__version__", "extract", "load_head", "open", "probe"]

__version__ = _version("featcache")

_install()


_HOMES = {
    "extract": "featcache.api.extraction",
    "load_head": "featcache.api.heads",
    "open": "featcache.api.opening",
    "probe": "featcache.api.probing",
}
"""The module that defines each public name."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        # Kept, so that the name is looked up once.
        value = globals()[name] = getattr(_import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
