"""Parameters of the public functions: those of the requests, and what only Python takes."""

from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen

from featcache.probing.heads import HeadInfo
from featcache.probing.requests.request import HEADS, ProbeRequest
from featcache.probing.requests.values import as_heads
from featcache.store.parameters import parameter
from featcache.store.reading.reader import Cache

DEFAULT_HEAD = "attentive"


@frozen(kw_only=True)
class ProbeCall(ProbeRequest):
    """A call of `featcache.probe`; errors as for `ProbeRequest`."""

    heads: tuple[HeadInfo, ...] = field(init=False, default=())
    cache: Cache | str | Path = field(
        kw_only=False,
        metadata=parameter(
            "Open cache; or its folder, key or DATASET/MODEL-KEY; or its address on a remote, from which only what is "
            "needed is fetched.",
            python_only="--cache, --model and --dataset name one cache or several",
        ),
    )
    head: str | Sequence[str] = field(default=DEFAULT_HEAD, kw_only=False, metadata=HEADS)
    progress: bool = field(
        default=True,
        metadata=parameter(
            "Show messages and progress on stderr.", python_only="--json decides it on the command line"
        ),
    )

    def __attrs_post_init__(self) -> None:
        # A table has heads of its own, so the default is none of them.
        heads = () if self.table is not None and self.head == DEFAULT_HEAD else as_heads(self.head)
        object.__setattr__(self, "heads", heads)
        super().__attrs_post_init__()
