"""`featcache.probe`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from featcache.api.signatures import takes_parameters_of
from featcache.api.types import PathLike
from featcache.probing.heads import HeadInfo
from featcache.probing.requests.request import HEADS, ProbeRequest
from featcache.probing.requests.values import as_heads
from featcache.store.address import is_address
from featcache.store.catalogue import roots, select
from featcache.store.parameters import PROGRESS, parameter
from featcache.store.reading.reader import Cache, open_cache
from featcache.terminal.console import ConsoleReporter

if TYPE_CHECKING:
    from featcache.probing.results.rows import ResultRow

DEFAULT_HEAD = "attentive"


@frozen(kw_only=True)
class ProbeCall(ProbeRequest):
    """A call of `featcache.probe`; errors as for `ProbeRequest`."""

    heads: tuple[HeadInfo, ...] = field(init=False, default=())
    cache: Cache | PathLike = field(
        kw_only=False,
        metadata=parameter(
            "Open cache; or its folder, key or DATASET/MODEL-KEY; or its address on a remote, from which only what is "
            "needed is fetched.",
            python_only="--cache, --model and --dataset name one cache or several",
        ),
    )
    head: str | Sequence[str] = field(default=DEFAULT_HEAD, kw_only=False, metadata=HEADS)
    progress: bool = field(default=True, metadata=PROGRESS)

    def __attrs_post_init__(self) -> None:
        # A table has heads of its own, so the default is none of them.
        heads = () if self.table is not None and self.head == DEFAULT_HEAD else as_heads(self.head)
        object.__setattr__(self, "heads", heads)
        super().__attrs_post_init__()


@takes_parameters_of(ProbeCall)
def probe(call: ProbeCall) -> "list[ResultRow]":
    """Train heads on a cache, score them on the test split, and keep heads and results in `out`.

    Returns:
        The baselines' rows first, then those asked for.

    Raises:
        RequestError: the request is wrong; `UnknownNameError` for a name that does not exist.
        CacheError: the cache is damaged; `CacheNotFoundError` if there is none.
        DivergedError: heads diverged; the other heads were trained and kept, and the error's `rows` has their results.

    Example:
        >>> rows = featcache.probe(cache, ["linear", "attentive"], layers="all", tokens="cls+ap")  # doctest: +SKIP
        >>> {row.head: row.score for row in rows}                                      # doctest: +SKIP
    """
    from featcache.devices.choice import choose_device
    from featcache.probing.run import probe as run_probe
    from featcache.zero_shot.choice import embedder_for

    reporter = ConsoleReporter(quiet=not call.progress)
    cache = call.cache if isinstance(call.cache, Cache) else _find(str(call.cache), call, reporter)
    device = choose_device(call.device)
    return run_probe(
        cache, call, device=device, reporter=reporter, embed_classes=embedder_for(call, device, reporter)
    )


def _find(cache: str, request: ProbeRequest, reporter: ConsoleReporter) -> Cache:
    from featcache.probing.requests.borrowing import borrow_for_probe

    if is_address(cache):
        return open_cache(borrow_for_probe(cache, roots(), request, reporter))
    return open_cache(select(roots(), cache).path)
