"""featcache: all-layer token features of frozen vision transformers, cached once; heads trained from the cache.

    cache = featcache.extract("dinov2-vit-s-14", "imagefolder:photos")
    rows = featcache.probe(cache, "attentive")
    head = featcache.load_head(f"featcache-results/{rows[-1].folder}")

The rooms behind this door: `featcache.extract` (images to tokens), `featcache.store` (the cache on disk),
`featcache.probe` (tokens to heads). Importing this package imports nothing of what is in them.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from inspect import Signature as _Signature
from inspect import signature as _signature
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.api import extract, load_head, open, probe

__all__ = ["__version__", "extract", "load_head", "open", "probe"]

__version__ = _version("featcache")


def __getattr__(name: str) -> Any:
    if name in ("load_head", "open"):
        return getattr(_import_module("featcache.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load_head", "open"]


class _Room(_ModuleType):
    """A package that is called as well: Python gives `featcache.probe` one meaning, and users need both."""

    @property
    def __signature__(self) -> _Signature:
        return _signature(self._function)

    @property
    def _function(self) -> Any:
        return getattr(_import_module("featcache.api"), self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function(*args, **options)


for _name in ("extract", "probe"):
    _import_module(f"featcache.{_name}").__class__ = _Room
