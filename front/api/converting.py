"""`featcache.convert`: a smaller cache of a cache."""

from attrs import field, fields, frozen

from featcache.api.signatures import takes_parameters_of
from featcache.api.types import CacheName, Roots, roots_of, text_of
from featcache.store.catalogue import select
from featcache.store.convert.requantize import ConvertRequest
from featcache.store.convert.requantize import convert as run_convert
from featcache.store.parameters import PROGRESS, parameter
from featcache.store.reading.reader import Cache, open_cache
from featcache.terminal.console import ConsoleReporter

_CONVERSION = fields(ConvertRequest)


@frozen(kw_only=True)
class ConvertCall:
    """A call of `featcache.convert`."""

    cache: CacheName = field(
        kw_only=False,
        metadata=parameter(
            "Open cache; or its folder, its key or the beginning of one, or DATASET/MODEL-KEY.",
            python_only="CACHE is an argument",
        ),
    )
    dtype: str = field(default=_CONVERSION.dtype.default, metadata=_CONVERSION.dtype.metadata)
    root: Roots = field(
        default=(),
        metadata=parameter(
            "Root, or several, of which the first is written to.", "--root", default="FEATCACHE_ROOT"
        ),
    )
    progress: bool = field(default=True, metadata=PROGRESS)


@takes_parameters_of(ConvertCall)
def convert(call: ConvertCall) -> Cache:
    """Make an int8 cache of a cache of floats, or find the one that was made before; neither images nor backbone are needed.

    Half the bytes of float16, with a key of its own. The command line prints the loss of every layer.

    Raises:
        CacheNotFoundError: there is no cache; the message lists what there is.
        RequestError: the cache is int8 already, or several caches match.
        IncompleteCacheError, PartialCacheError: the cache is not whole.
        CacheError: a file is damaged, or an earlier conversion holds less than the cache does now.
        NotEnoughSpaceError: the disk has too little room.

    Example:
        >>> featcache.convert("0123456789ab")["train"].stored_dtype  # doctest: +SKIP
        'int8'
    """
    request, search = ConvertRequest(dtype=call.dtype), roots_of(call.root)
    cache = (
        call.cache if isinstance(call.cache, Cache) else open_cache(select(search, text_of(call.cache)).path)
    )
    done = run_convert(cache, request, search, reporter=ConsoleReporter(quiet=not call.progress))
    return open_cache(done.path)
