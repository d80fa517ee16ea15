"""What is to be trained: the request, and what it means for a cache. No torch, so that a wrong name shows at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.probe.heads import HeadInfo, get_head
from featcache.probe.heads.info import AUTO as AUTO_HEAD
from featcache.probe.heads.info import CLOSED as CLOSED_HEAD
from featcache.probe.heads.info import EXACT as EXACT_HEAD
from featcache.probe.protocol import INPUTS, Protocol, get_protocol
from featcache.probe.scoring.kinds import KINDS, REGRESSION_LOSSES
from featcache.probe.table import TABLES, TableRow
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
CLOSED, CHOICE = "closed", "auto"
"""Solvers of the heads that are fitted by formula, and of the head that is chosen."""
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


def array_selection(num_tokens: int, num_layers: int | None = None) -> Selection:
    """Name the T tokens of an array: those of L layers, layer by layer (by default L = T).

    Raises:
        RequestError: the tokens do not divide among the layers.
    """
    layers = num_layers or num_tokens
    if num_tokens % layers:
        raise RequestError(f"{num_tokens} tokens do not divide among {layers} layers")
    kinds = tuple(f"token{index}" for index in range(num_tokens // layers))
    names = tuple(str(index) for index in range(layers))
    return Selection("all", names, kinds, (Part(POOLED, names, kinds),))


@dataclass(frozen=True)
class ProbeRequest:
    """What to train.

    Raises:
        UnknownNameError: a head or the protocol does not exist.
        RequestError: no head or no seed is named, attention heads for heads without attention, a solver that cannot
            solve for a head, or a table together with heads, layers or tokens.
    """

    heads: tuple[str, ...] = ()
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
    input: str | None = None
    """Input stage: ``l2``, ``standard`` or ``l2+standard``; the protocol's if not given."""
    folds: int | None = None
    """Choose by so many folds of train, or by a held-out part if 1; as the protocol has it if not given."""
    halving: int | None = None
    """Successive halving keeps one in so many members; as the protocol has it if not given."""
    shots: tuple[int, ...] = ()
    """Train on so many samples of each class; on all if none is given."""
    draws: int = 1
    """How often the samples of a few-shot run are drawn."""
    target_kind: str | None = None
    """``single-label``, ``multi-label`` or ``regression``; what the cache's targets are if not given."""
    regression_loss: str = REGRESSION_LOSSES[0]
    """``mse`` or ``mae``."""
    options: Mapping[str, int] = field(default_factory=dict)
    """What heads take besides, such as ``hidden``; each takes those that it knows."""
    table: str | None = None
    """A table's rows instead of heads, layers and tokens: ``paper`` for those of arXiv 2601.09322."""

    def __post_init__(self) -> None:
        self._check_table()
        names = {row.head for row in self.rows}
        for name in names:
            get_head(name)
        self._check_settings(names)
        for what, name, valid in (
            ("solver", self.solver, SOLVERS),
            ("penalty", self.penalty, PENALTIES),
            ("precision", self.precision, PRECISIONS),
        ):
            if name not in valid:
                raise UnknownNameError(what, name, valid)
        if self.solver == EXACT and not names <= {"linear", "logreg"}:
            raise RequestError(
                "the exact solver is for linear heads alone; leave --solver out for the others"
            )
        if not names or not self.seeds:
            raise RequestError("a probe needs at least one head (or a table) and one seed")
        if self.num_heads is not None and not any("num_heads" in get_head(name).options for name in names):
            raise RequestError("num-heads is for heads with attention, such as attentive; none is asked for")

    def settings(self) -> Protocol:
        """The protocol, with what the request changes of it for the baseline too: everything but the input stage."""
        protocol = get_protocol(self.protocol)
        if self.folds is not None:
            protocol = replace(protocol, folds=self.folds, folds_below=None)
        return protocol if self.halving is None else replace(protocol, halving=self.halving)

    def _check_settings(self, names: set[str]) -> None:
        get_protocol(self.protocol)
        for what, name, valid in (
            ("input stage", self.input, INPUTS),
            ("kind of targets", self.target_kind, KINDS),
            ("regression loss", self.regression_loss, REGRESSION_LOSSES),
        ):
            if name is not None and name not in valid:
                raise UnknownNameError(what, name, valid)
        for what, numbers in (("folds", [self.folds]), ("halving", [self.halving]), ("draws", [self.draws])):
            if any(number is not None and number < 1 for number in numbers):
                raise RequestError(f"{what} must be at least 1, not {numbers[0]}")
        if any(number < 1 for number in self.shots):
            raise RequestError(f"shots are samples of every class, at least 1, not {min(self.shots)}")
        if self.draws > 1 and not self.shots:
            raise RequestError("draws are for few-shot runs; say how many samples of each class with shots")
        known = {option for name in names for option in get_head(name).options}
        for option, number in self.options.items():
            if option not in known:
                raise UnknownNameError("option", option, known, f"(of {', '.join(sorted(names))})")
            if number < 1:
                raise RequestError(f"{option} must be at least 1, not {number}")

    @property
    def rows(self) -> tuple[TableRow, ...]:
        """What is asked for, head by head; layers and tokens that are not given are the head's own."""
        if self.table is not None:
            return TABLES[self.table]
        return tuple(TableRow(head, self.layers, self.tokens) for head in self.heads)

    def _check_table(self) -> None:
        if self.table is None:
            return
        if self.table not in TABLES:
            raise UnknownNameError("table", self.table, TABLES)
        for what, given in (("heads", self.heads), ("layers", self.layers), ("tokens", self.tokens)):
            if given:
                raise RequestError(f"the table {self.table} says which {what} it has; leave them out")


@dataclass(frozen=True)
class Job:
    """One head on one selection of tokens."""

    head: HeadInfo
    selection: Selection
    options: Mapping[str, int] = field(default_factory=dict)
    """What the head takes besides its size."""
    solver: str = ADAMW
    penalty: str = L2
    """Of the exact solver."""
    input: str | None = None
    """Input stage; that of the protocol if not given."""

    @property
    def num_heads(self) -> int | None:
        """Attention heads, of a head that has their number as an option."""
        return self.options.get("num_heads")

    def build(self, num_tokens: int, width: int, num_classes: int, dropouts: Sequence[float]) -> "Head":
        """Build M heads; see `HeadInfo.build`."""
        return self.head.build(num_tokens, width, num_classes, dropouts, **self.options)

    def of(self, head: HeadInfo, request: ProbeRequest) -> "Job":
        """Another head on the same tokens."""
        return make_job(head, self.selection, request)


def make_job(head: HeadInfo, selection: Selection, request: ProbeRequest) -> Job:
    """Say how a head is fitted to a selection.

    Raises:
        RequestError: the head needs the same tokens of every layer, and the selection has others.
    """
    solver = {CLOSED_HEAD: CLOSED, EXACT_HEAD: EXACT, AUTO_HEAD: CHOICE}.get(head.fitting, request.solver)
    return Job(head, selection, _options(head, selection, request), solver, request.penalty, request.input)


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

    Rows of a table whose tokens the cache does not hold are left out; see `left_out`.

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
    for row in request.rows:
        head = get_head(row.head)
        kinds = _default_tokens(cache, head) if row.tokens is None else parse_kinds(row.tokens)
        if request.table is not None and missing_tokens(cache, kinds):
            continue
        layers = head.default_layers if row.layers is None else row.layers
        selection = _select(cache, layers, kinds)
        asked.append(make_job(head, selection, request))
    base = baseline(cache)
    wanted = {(job.head.name, job.selection.parts, job.solver, job.input): job for job in (base, *asked)}
    return list(wanted.values())


def left_out(cache: Cache, request: ProbeRequest) -> list[tuple[TableRow, str]]:
    """The rows of a table whose tokens the cache does not hold on the last layer, and which tokens those are."""
    if request.table is None:
        return []
    missing = [(row, missing_tokens(cache, parse_kinds(row.tokens or ""))) for row in request.rows]
    return [(row, "+".join(kinds)) for row, kinds in missing if kinds]


def missing_tokens(cache: Cache, kinds: Sequence[str]) -> list[str]:
    """Those of `kinds` that a split lacks on the last layer."""
    return [
        kind
        for kind in kinds
        if not all(
            kind in split.arrays[FINAL].tokens
            if kind in TOKEN_KINDS
            else array_name(FINAL, kind) in split.arrays
            for split in cache.inventory.splits.values()
        )
    ]


def _options(head: HeadInfo, selection: Selection, request: ProbeRequest) -> dict[str, Any]:
    """What a head takes: asked for, or following from the tokens."""
    options = {name: value for name, value in request.options.items() if name in head.options}
    if "num_heads" in head.options:
        options["num_heads"] = request.num_heads or _num_heads(selection)
    if head.by_layer:
        if [part.group for part in selection.parts] != [POOLED]:
            raise RequestError(
                f"head {head.name!r} needs the same tokens of every layer; ask for --tokens cls, ap or cls+ap, "
                f"not {selection.token_names}"
            )
        options["num_layers"] = len(selection.layers)
    return options


def _num_heads(selection: Selection) -> int:
    """The number of heads of arXiv 2601.09322: one for each pooled token, 8 for the patches of a layer."""
    pooled = all(part.group == POOLED for part in selection.parts)
    return selection.num_tokens if pooled else PATCH_HEADS


def parse_kinds(text: str) -> tuple[str, ...]:
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
