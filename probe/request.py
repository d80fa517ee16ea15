"""What is to be trained: the request, and what it means for a cache. No torch, so that a wrong name shows at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.probe.heads import HeadInfo, get_head
from featcache.probe.protocol import get_protocol
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import DEFAULT_TAP, SPLITS, Inventory
from featcache.store.layers import FINAL, TOKEN_KINDS, parse_layers
from featcache.store.manifest import Manifest
from featcache.store.reading.reader import Cache
from featcache.store.requests import AUTO
from featcache.store.token_groups import POOLED, array_name, parse_groups

if TYPE_CHECKING:
    from featcache.probe.heads.base import Head

RESULTS = Path("featcache-results")
PATCH_HEADS = 8
ADAMW, EXACT = SOLVERS = ("adamw", "exact")
PRECISIONS = (AUTO, "fp32", "bf16")
L2, GROUP_LASSO = PENALTIES = ("l2", "group-lasso")


@dataclass(frozen=True)
class Part:
    """Tokens of one group that a head sees."""

    group: str
    layers: tuple[str, ...]
    tokens: tuple[str, ...]
    """As the cache names them: ``cls`` and ``ap``, or ``patch0``, ``patch1``, ..."""

    @property
    def num_tokens(self) -> int:
        """Tokens a sample."""
        return len(self.layers) * len(self.tokens)


@dataclass(frozen=True)
class Selection:
    """Which tokens a head sees, as they were asked for and as they are."""

    name: str
    """Layer set or list, as given."""
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    """Token kinds, such as ``cls`` or ``patches``."""
    parts: tuple[Part, ...]
    """In the order in which a head sees them; within a part, layer by layer."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def token_names(self) -> str:
        """Token kinds, such as ``cls+ap``."""
        return "+".join(self.kinds)

    def places(self) -> list[tuple[str, str]]:
        """Layer and kind of each of the T tokens."""
        return [
            (layer, token if part.group == POOLED else part.group)
            for part in self.parts
            for layer in part.layers
            for token in part.tokens
        ]


@dataclass(frozen=True)
class ProbeRequest:
    """What to train.

    Raises:
        UnknownNameError: a head or the protocol does not exist.
        RequestError: no head or no seed is named, attention heads for heads without attention, or a solver that cannot
            solve for a head.
    """

    heads: tuple[str, ...]
    layers: str | None = None
    """Layer set or list; each head's own default if not given."""
    tokens: str | None = None
    """Token kinds, such as ``cls+ap`` or ``cls+patches``; each head's own default if not given."""
    num_heads: int | None = None
    """Attention heads; if not given, one for each token, or 8 where patches are among them."""
    protocol: str = "paper"
    precision: str = AUTO
    """Of matrix products: ``fp32``, ``bf16``, or ``auto``, which depends on the device."""
    solver: str = ADAMW
    """``adamw``: the protocol's members are trained; or ``exact``: linear heads are solved for, penalty by penalty."""
    penalty: str = L2
    """Of the exact solver: ``l2`` or ``group-lasso`` over layers."""
    memory: int | None = None
    """Bytes for tokens and members; by default what the machine has to spare."""
    seeds: tuple[int, ...] = (0,)
    out: Path = RESULTS
    """Folder of the results."""
    force: bool = False
    """Train again what the results hold already."""

    def __post_init__(self) -> None:
        for name in self.heads:
            get_head(name)
        get_protocol(self.protocol)
        for what, name, valid in (
            ("solver", self.solver, SOLVERS),
            ("penalty", self.penalty, PENALTIES),
            ("precision", self.precision, PRECISIONS),
        ):
            if name not in valid:
                raise UnknownNameError(what, name, valid)
        if self.solver == EXACT and set(self.heads) != {"linear"}:
            raise RequestError(
                "the exact solver is for linear heads alone; leave --solver out for the others"
            )
        if not self.heads or not self.seeds:
            raise RequestError("a probe needs at least one head and one seed")
        if self.num_heads is not None and not any(get_head(name).has_attention for name in self.heads):
            raise RequestError("num-heads is for heads with attention, such as attentive; none is asked for")


@dataclass(frozen=True)
class Job:
    """One head on one selection of tokens."""

    head: HeadInfo
    selection: Selection
    num_heads: int | None = None
    """Of a head with attention."""
    solver: str = ADAMW
    penalty: str = L2
    """Of the exact solver."""

    def build(self, num_tokens: int, width: int, num_classes: int, dropouts: Sequence[float]) -> "Head":
        """Build M heads; see `HeadInfo.build`."""
        return self.head.build(num_tokens, width, num_classes, dropouts, **self.options)

    @property
    def options(self) -> dict[str, int]:
        """What the head takes besides its size."""
        return {} if self.num_heads is None else {"num_heads": self.num_heads}


def baseline(cache: Cache) -> Job:
    """The linear probe on the last layer's class token."""
    head = get_head("linear")
    return Job(head, _select(cache, head.default_layers, _default_tokens(cache, head)))


def needed(whole: Manifest, request: ProbeRequest) -> Inventory:
    """The part of a cache that a request needs, told from its manifest alone.

    Raises:
        UnknownNameError, RequestError: as for `jobs`.
    """
    parts = [part for job in _jobs(Cache(Path(), whole), request) for part in job.selection.parts]
    wanted: dict[str, set[str]] = {}
    for part in parts:
        for layer in part.layers:
            tap = FINAL if layer == FINAL else DEFAULT_TAP
            wanted.setdefault(array_name(tap, part.group), set()).add(layer)
    splits = {}
    for name in SPLITS:
        split = whole.inventory.splits[name]
        arrays = {
            array.name: replace(array, layers=tuple(x for x in array.layers if x in wanted[array.name]))
            if array.layers
            else array
            for array in split.arrays.values()
            if not array.layers or array.name in wanted
        }
        splits[name] = replace(split, arrays=arrays)
    return replace(whole.inventory, splits=splits)


def jobs(cache: Cache, request: ProbeRequest) -> list[Job]:
    """What a request means for a cache: the baseline, then the heads asked for, none twice.

    Raises:
        UnknownNameError: a layer or token kind does not exist or is not cached.
        RequestError: the cache lacks a split.
        PartialCacheError: it is a partial copy that lacks some of it; the message has the command that fetches it.
    """
    if cache.partial:
        whole = replace(cache.manifest, inventory=cache.manifest.full_inventory, whole=None)
        cache.require(needed(whole, request))
    return _jobs(cache, request)


def _jobs(cache: Cache, request: ProbeRequest) -> list[Job]:
    asked = []
    for head in map(get_head, request.heads):
        kinds = _default_tokens(cache, head) if request.tokens is None else _parse_kinds(request.tokens)
        layers = head.default_layers if request.layers is None else request.layers
        selection = _select(cache, layers, kinds)
        num_heads = _num_heads(head, selection, request)
        asked.append(Job(head, selection, num_heads, request.solver, request.penalty))
    base = baseline(cache)
    wanted = {(job.head.name, job.selection.parts, job.solver): job for job in (base, *asked)}
    return list(wanted.values())


def _num_heads(head: HeadInfo, selection: Selection, request: ProbeRequest) -> int | None:
    """The number of heads of arXiv 2601.09322: one for each pooled token, 8 for the patches of a layer."""
    if not head.has_attention:
        return None
    pooled = all(part.group == POOLED for part in selection.parts)
    return request.num_heads or (selection.num_tokens if pooled else PATCH_HEADS)


def _parse_kinds(text: str) -> tuple[str, ...]:
    """Class token and average in the order given, then the groups in that of `GROUPS`: one selection, one result."""
    groups = parse_groups(text)[1:]
    names = [name.strip() for name in text.replace("+", ",").split(",") if name.strip()]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise RequestError(f"token kind {', '.join(doubled)} is named more than once in {text!r}")
    return (*(name for name in names if name in TOKEN_KINDS), *groups)


def _default_tokens(cache: Cache, head: HeadInfo) -> tuple[str, ...]:
    """A head's own token kinds, as far as the backbone has them: some have no class token."""
    held = next(iter(cache.manifest.full_inventory.splits.values())).arrays[FINAL].tokens
    return tuple(kind for kind in head.default_tokens if kind in held) or held


def _select(cache: Cache, layers: str, kinds: tuple[str, ...]) -> Selection:
    names = parse_layers(layers, cache.spec.backbone.num_layers)
    for split in SPLITS:
        if split not in cache.inventory.splits:
            raise RequestError(
                f"{cache.directory} holds no {split} split; the same `featcache extract` without --split adds it"
            )
    parts: list[Part] = []
    pooled = tuple(kind for kind in kinds if kind in TOKEN_KINDS)
    if pooled:
        parts.append(Part(POOLED, names, pooled))
    parts += [_group_part(cache, group, names) for group in kinds if group not in TOKEN_KINDS]
    for split in SPLITS:
        for part in parts:
            held = cache[split].view(group=part.group)
            for what, wanted, valid in (
                ("layer", part.layers, held.layers),
                ("token kind", part.tokens, held.tokens),
            ):
                for name in wanted:
                    if name not in valid:
                        raise UnknownNameError(what, name, valid, "(the cache holds no other)")
    return Selection(layers, names, kinds, tuple(parts))


def _group_part(cache: Cache, group: str, names: tuple[str, ...]) -> Part:
    """All tokens of a group in those of the layers that hold it."""
    for split in SPLITS:
        arrays = cache.inventory.splits[split].arrays
        if not any(array_name(tap, group) in arrays for tap in (DEFAULT_TAP, FINAL)):
            raise RequestError(
                f"{cache.directory} holds no {group} of the {split} split; "
                f"the same `featcache extract` with --tokens {group} adds them"
            )
    held = cache[SPLITS[0]].view(group=group)
    layers = tuple(name for name in names if name in held.layers)
    if not layers:
        raise RequestError(f"the cache holds {group} of {', '.join(held.layers)}, none of which is asked for")
    return Part(group, layers, tuple(held.tokens))
