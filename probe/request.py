"""What is to be trained: the request, and what it means for a cache. No torch, so that a wrong name shows at once."""

from dataclasses import dataclass
from pathlib import Path

from featcache.probe.heads import HeadInfo, get_head
from featcache.probe.protocol import get_protocol
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import SPLITS
from featcache.store.layers import FINAL, parse_layers, parse_tokens
from featcache.store.reading.reader import Cache

RESULTS = Path("featcache-results")


@dataclass(frozen=True)
class Selection:
    """Which tokens a head sees, as they were asked for and as they are."""

    name: str
    """Layer set or list, as given."""
    layers: tuple[str, ...]
    tokens: tuple[str, ...]

    @property
    def token_names(self) -> str:
        """Token kinds, such as ``cls+ap``."""
        return "+".join(self.tokens)


@dataclass(frozen=True)
class ProbeRequest:
    """What to train.

    Raises:
        UnknownNameError: a head or the protocol does not exist.
        RequestError: no head or no seed is named.
    """

    heads: tuple[str, ...]
    layers: str | None = None
    """Layer set or list; each head's own default if not given."""
    tokens: str | None = None
    """Token kinds, such as ``cls+ap``; each head's own default if not given."""
    protocol: str = "quick"
    seeds: tuple[int, ...] = (0,)
    out: Path = RESULTS
    """Folder of the results."""
    force: bool = False
    """Train again what the results hold already."""

    def __post_init__(self) -> None:
        for name in self.heads:
            get_head(name)
        get_protocol(self.protocol)
        if not self.heads or not self.seeds:
            raise RequestError("a probe needs at least one head and one seed")


@dataclass(frozen=True)
class Job:
    """One head on one selection of tokens."""

    head: HeadInfo
    selection: Selection


def baseline(cache: Cache) -> Job:
    """The linear probe on the last layer's class token."""
    head = get_head("linear")
    return Job(head, _select(cache, head.default_layers, _default_tokens(cache, head)))


def jobs(cache: Cache, request: ProbeRequest) -> list[Job]:
    """What a request means for a cache: the baseline, then the heads asked for, none twice.

    Raises:
        UnknownNameError: a layer or token kind does not exist or is not cached.
        RequestError: the cache lacks a split.
    """
    asked = []
    for head in map(get_head, request.heads):
        tokens = _default_tokens(cache, head) if request.tokens is None else parse_tokens(request.tokens)
        asked.append(Job(head, _select(cache, request.layers or head.default_layers, tokens)))
    wanted = {(job.head.name, job.selection.layers, job.selection.tokens): job for job in asked}
    base = baseline(cache)
    wanted.pop((base.head.name, base.selection.layers, base.selection.tokens), None)
    return [base, *wanted.values()]


def _default_tokens(cache: Cache, head: HeadInfo) -> tuple[str, ...]:
    """A head's own token kinds, as far as the backbone has them: some have no class token."""
    held = next(iter(cache.inventory.splits.values())).arrays[FINAL].tokens
    return tuple(kind for kind in head.default_tokens if kind in held) or held


def _select(cache: Cache, layers: str, tokens: tuple[str, ...]) -> Selection:
    selection = Selection(layers, parse_layers(layers, cache.spec.backbone.num_layers), tokens)
    for split in SPLITS:
        if split not in cache.inventory.splits:
            raise RequestError(
                f"{cache.directory} holds no {split} split; the same `featcache extract` without --split adds it"
            )
        held = cache[split]
        for what, names, valid in (
            ("layer", selection.layers, held.layers),
            ("token kind", tokens, held.tokens),
        ):
            for name in names:
                if name not in valid:
                    raise UnknownNameError(what, name, valid, "(the cache holds no other)")
    return selection
