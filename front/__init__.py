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
    from featcache.api import extract, load_head, open, probe

__all__ = ["__version__", "extract", "load_head", "open", "probe"]

__version__ = _version("featcache")

_install()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(_import_module("featcache.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
