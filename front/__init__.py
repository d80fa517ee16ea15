"""featcache: all-layer token features of frozen vision transformers, cached once; heads trained from the cache.

    cache = featcache.extract("dinov2-vit-s-14", "imagefolder:photos")
    rows = featcache.probe(cache, "attentive")
    head = featcache.load_head(f"featcache-results/{rows[-1].folder}")

Public are the names in `__all__`, the errors in `featcache.errors`, and what their docstrings say. Everything else,
the submodules included, may change between versions. Importing this package imports no torch and no numpy: a name is
loaded when it is used first.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from featcache.moved import install as _install

if TYPE_CHECKING:
    from featcache import errors
    from featcache.api.converting import convert
    from featcache.api.extraction import extract
    from featcache.api.heads import load_head
    from featcache.api.information import CacheInfo, info
    from featcache.api.labeling import label
    from featcache.api.listing import CacheListing, ls
    from featcache.api.opening import open
    from featcache.api.plotting import plot
    from featcache.api.probing import probe
    from featcache.api.results import results
    from featcache.api.sharing import pull, push
    from featcache.api.verification import CacheCheck, verify
    from featcache.extraction.backbones.base import Backbone, TokenLayout
    from featcache.extraction.backbones.custom import Parts, custom_backbone
    from featcache.extraction.sources.base import Source
    from featcache.extraction.sources.dataset_options import DatasetOptions
    from featcache.extraction.sources.sequences import python_dataset
    from featcache.probing.estimators import AttentiveProbe, HeadProbe, HeadRegressor, LinearProbe
    from featcache.probing.inputs.dataset import CachedSamples, ShuffledBatches
    from featcache.probing.protocols.protocol import Protocol
    from featcache.probing.report.tables import Table
    from featcache.probing.results.rows import ResultRow, read_confusion, read_rows
    from featcache.probing.scoring.metrics import Report
    from featcache.probing.trained import TrainedHead
    from featcache.store.reading.reader import Cache
    from featcache.store.reading.split import SplitReader
    from featcache.store.transfer.pull import PullResult
    from featcache.store.transfer.push import PushResult

    __version__: str

__all__ = [
    "AttentiveProbe",
    "Backbone",
    "Cache",
    "CacheCheck",
    "CacheInfo",
    "CacheListing",
    "CachedSamples",
    "DatasetOptions",
    "HeadProbe",
    "HeadRegressor",
    "LinearProbe",
    "Parts",
    "Protocol",
    "PullResult",
    "PushResult",
    "Report",
    "ResultRow",
    "ShuffledBatches",
    "Source",
    "SplitReader",
    "Table",
    "TokenLayout",
    "TrainedHead",
    "__version__",
    "convert",
    "custom_backbone",
    "errors",
    "extract",
    "info",
    "label",
    "load_head",
    "ls",
    "open",
    "plot",
    "probe",
    "pull",
    "push",
    "python_dataset",
    "read_confusion",
    "read_rows",
    "results",
    "verify",
]

_HOMES = {
    "featcache.api.converting": ("convert",),
    "featcache.api.extraction": ("extract",),
    "featcache.api.heads": ("load_head",),
    "featcache.api.information": ("CacheInfo", "info"),
    "featcache.api.labeling": ("label",),
    "featcache.api.listing": ("CacheListing", "ls"),
    "featcache.api.opening": ("open",),
    "featcache.api.plotting": ("plot",),
    "featcache.api.probing": ("probe",),
    "featcache.api.results": ("results",),
    "featcache.api.sharing": ("pull", "push"),
    "featcache.api.verification": ("CacheCheck", "verify"),
    "featcache.extraction.backbones.base": ("Backbone", "TokenLayout"),
    "featcache.extraction.backbones.custom": ("Parts", "custom_backbone"),
    "featcache.extraction.sources.base": ("Source",),
    "featcache.extraction.sources.dataset_options": ("DatasetOptions",),
    "featcache.extraction.sources.sequences": ("python_dataset",),
    "featcache.probing.estimators": ("AttentiveProbe", "HeadProbe", "HeadRegressor", "LinearProbe"),
    "featcache.probing.inputs.dataset": ("CachedSamples", "ShuffledBatches"),
    "featcache.probing.protocols.protocol": ("Protocol",),
    "featcache.probing.report.tables": ("Table",),
    "featcache.probing.results.rows": ("ResultRow", "read_confusion", "read_rows"),
    "featcache.probing.scoring.metrics": ("Report",),
    "featcache.probing.trained": ("TrainedHead",),
    "featcache.store.reading.reader": ("Cache",),
    "featcache.store.reading.split": ("SplitReader",),
    "featcache.store.transfer.pull": ("PullResult",),
    "featcache.store.transfer.push": ("PushResult",),
}
"""The public names by the module that defines them; the same as the imports above, which only type checkers run."""

_MODULES = {name: module for module, names in _HOMES.items() for name in names}

_install()


def _load(name: str) -> Any:
    value: Any
    if name in _MODULES:
        value = getattr(_import_module(_MODULES[name]), name)
    elif name == "errors":
        value = _import_module("featcache.errors")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("featcache")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # so that it is looked up once
    return value


if not TYPE_CHECKING:  # a type checker would take any name for one of this module
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
