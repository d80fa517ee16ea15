"""`featcache.label`."""

from pathlib import Path

from attrs import field, frozen

from featcache.api.signatures import takes_parameters_of
from featcache.api.types import CacheName, text_of
from featcache.extraction.labeling.request import LabelRequest
from featcache.store.catalogue import roots, select
from featcache.store.parameters import PROGRESS, as_optional_path, as_path, parameter
from featcache.store.reading.reader import Cache, open_cache
from featcache.terminal.console import ConsoleReporter


@frozen(kw_only=True, slots=False)
class LabelCall(LabelRequest):
    """A call of `featcache.label`, or of the command; errors as for `LabelRequest`."""

    cache: CacheName = field(
        kw_only=False,
        metadata=parameter(
            "Open cache; or its folder, its key or the beginning of one, or DATASET/MODEL-KEY.",
            python_only="CACHE is an argument",
        ),
    )
    table: Path = field(
        kw_only=False,
        converter=as_path,
        metadata=parameter(
            "CSV file with a row for each sample of the cache.", python_only="TABLE is an argument"
        ),
    )
    root: Path | None = field(
        default=None,
        converter=as_optional_path,
        metadata=parameter(
            "Root in which the cache is looked for and to which the new one is written.",
            python_only="--root, which most commands have, may be repeated",
            default="$FEATCACHE_ROOT, else the user's cache folder",
        ),
    )
    progress: bool = field(default=True, metadata=PROGRESS)


@takes_parameters_of(LabelCall)
def label(call: LabelCall) -> Cache:
    """Attach labels to a cache: make a cache of the same features, whose files are hard links, and open it.

    Raises:
        CacheNotFoundError: there is no cache; the message lists what there is.
        IncompleteCacheError, PartialCacheError: the cache is not whole.
        RequestError: a column does not exist.
        DatasetError: ids are unknown, doubled or missing, or values are no labels; nothing is written.

    Example:
        >>> cache = featcache.label("0123456789ab", "labels.csv")  # doctest: +SKIP
    """
    from featcache.extraction.labeling.run import attach_labels

    search = roots([] if call.root is None else [call.root])
    reporter = ConsoleReporter(quiet=not call.progress)
    result = attach_labels(select(search, text_of(call.cache)), call.table, call, search, reporter)
    return open_cache(result.path)
