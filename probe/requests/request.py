"""What is to be trained: the request, and what it means for a cache. No torch, so that a wrong name shows at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.devices.precision import TRAINING_PRECISIONS
from featcache.probing.heads import HeadInfo, get_head
from featcache.probing.heads.info import AUTO as AUTO_HEAD
from featcache.probing.heads.info import CLOSED_FORM as CLOSED_FORM_HEAD
from featcache.probing.heads.info import EXACT as EXACT_HEAD
from featcache.probing.heads.info import SOLVED_HEAD
from featcache.probing.inputs.selection import Selection, default_tokens, missing_tokens, parse_kinds, select
from featcache.probing.protocols.protocol import INPUTS, Protocol, get_protocol
from featcache.probing.requests.tables import TABLES, TableRow
from featcache.probing.scoring.kinds import KINDS, REGRESSION_LOSSES
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import DEFAULT_TAP, SPLITS, TAPS, Inventory
from featcache.store.layers import FINAL
from featcache.store.manifest import Manifest
from featcache.store.reading.reader import Cache
from featcache.store.requests import AUTO
from featcache.store.seeds import check_seed
from featcache.store.token_groups import POOLED, array_name

if TYPE_CHECKING:
    from featcache.probing.heads.base import Head

RESULTS = Path("featcache-results")
PATCH_HEADS = 8
MAX_OPTION = 2**20
"""Of hidden units, queries and the like: far more than anyone needs, few enough to say so instead of running out of memory."""
MAX_REPEATS, MAX_SHOTS = 10**6, 10**9
ADAMW, EXACT = SOLVERS = ("adamw", "exact")
CLOSED_FORM, CHOICE = "closed", "auto"
"""Solvers of the heads that are fitted by formula, and of the head that is chosen."""
L2, GROUP_LASSO = PENALTIES = ("l2", "group-lasso")


@dataclass(frozen=True)
class ProbeRequest:
    """What to train.

    Raises:
        UnknownNameError: a head, the protocol or the tap does not exist.
        RequestError: no head or no seed is named, attention heads for heads without attention, a solver that cannot
            solve for a head, or a table together with heads, layers or tokens.
    """

    heads: tuple[str, ...] = ()
    layers: str | None = None
    """Layer set or list; each head's own default if not given."""
    tokens: str | None = None
    """Token kinds, such as ``cls+ap`` or ``cls+patches``; each head's own default if not given."""
    tap: str = DEFAULT_TAP
    """Where in the blocks: ``norm2``, ``block``, ``attn``, ``mlp`` or ``norm1``, as far as the cache holds it."""
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
    """Input stage: ``l2``, ``standard`` or ``l2+standard``; the protocol's if not given. To ``auto`` it leaves no other."""
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
    groups: Path | None = None
    """CSV file with the columns sample_id and group; train samples of one group are held out together during the choice of settings."""
    table: str | None = None
    """A table's rows instead of heads, layers and tokens: ``paper`` for those of arXiv 2601.09322."""

    def __post_init__(self) -> None:
        self._check_table()
        names = {row.head for row in self.rows}
        for name in names:
            if not get_head(name).listed:
                raise RequestError(f"head {name!r} is what auto makes of several heads; ask for auto")
        self._check_settings(names)
        for what, name, valid in (
            ("solver", self.solver, SOLVERS),
            ("penalty", self.penalty, PENALTIES),
            ("precision", self.precision, (AUTO, *TRAINING_PRECISIONS)),
            ("tap", self.tap, TAPS),
        ):
            if name not in valid:
                raise UnknownNameError(what, name, valid)
        if self.penalty != L2 and self.solver != EXACT and SOLVED_HEAD not in names:
            raise RequestError(
                f"the penalty {self.penalty} is for heads that are solved exactly; add --solver exact"
            )
        if self.solver == EXACT and not names <= {"linear", SOLVED_HEAD}:
            raise RequestError(
                "the exact solver is for linear heads alone; leave --solver out for the others"
            )
        if not names or not self.seeds:
            raise RequestError(
                "a probe needs a head (--head auto, say; `featcache heads` lists them) or a table, and a seed"
            )
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
        if self.draws > 1 and not self.shots:
            raise RequestError("draws are for few-shot runs; say how many samples of each class with shots")
        self._check_numbers()
        known = {option for name in names for option in get_head(name).options}
        for option, number in self.options.items():
            if option not in known:
                raise UnknownNameError("option", option, known, f"(of {', '.join(sorted(names))})")
            if not 1 <= number <= MAX_OPTION:
                raise RequestError(f"{option} must be from 1 to {MAX_OPTION:,}, not {number}")
        if self.num_heads is not None and not 1 <= self.num_heads <= MAX_OPTION:
            raise RequestError(f"num-heads must be from 1 to {MAX_OPTION:,}, not {self.num_heads}")
        if self.num_heads is not None and self.options.get("num_heads", self.num_heads) != self.num_heads:
            raise RequestError(
                f"num-heads is {self.num_heads}, the option num_heads {self.options['num_heads']}: say it once"
            )

    def _check_numbers(self) -> None:
        """Check that the numbers are in ranges that all files and generators accept."""
        for seed in self.seeds:
            check_seed(seed)
        for what, number, most in (
            ("folds", self.folds, MAX_REPEATS),
            ("halving", self.halving, MAX_REPEATS),
            ("draws", self.draws, MAX_REPEATS),
            *(("shots", shots, MAX_SHOTS) for shots in self.shots),
        ):
            if number is not None and number < 1:
                words = "shots are samples of every class," if what == "shots" else f"{what} must be"
                raise RequestError(f"{words} at least 1, not {number}")
            if number is not None and number > most:
                raise RequestError(f"{what} must be at most {most:,}; choose a smaller number")
        if self.memory is not None and self.memory < 1:
            raise RequestError(
                f"memory must be at least 1 byte, got {self.memory}; leave it out for the default"
            )

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
class HeadJob:
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

    def of(self, head: HeadInfo, request: ProbeRequest) -> "HeadJob":
        """Another head on the same tokens."""
        return make_job(head, self.selection, request)


def make_job(head: HeadInfo, selection: Selection, request: ProbeRequest) -> HeadJob:
    """Say how a head is fitted to a selection; a linear head that is solved for is `logreg`, whichever of the two was named.

    Raises:
        RequestError: the head needs the same tokens of every layer, and the selection has others.
    """
    solver = {CLOSED_FORM_HEAD: CLOSED_FORM, EXACT_HEAD: EXACT, AUTO_HEAD: CHOICE}.get(
        head.fitting, request.solver
    )
    if solver == EXACT:
        head = get_head(SOLVED_HEAD)
    return HeadJob(
        head, selection, _options(head, selection, request), solver, request.penalty, request.input
    )


def baseline(cache: Cache) -> HeadJob:
    """The linear probe on the last layer's class token."""
    head = get_head("linear")
    return HeadJob(head, select(cache, head.default_layers, default_tokens(cache, head)))


def needed(whole: Manifest, request: ProbeRequest) -> Inventory:
    """The part of a cache that a request needs, told from its manifest alone.

    Raises:
        UnknownNameError, RequestError: as for `jobs`.
    """
    parts = [part for job in _jobs(Cache(Path(), whole), request) for part in job.selection.parts]
    wanted: dict[str, set[str]] = {}
    for part in parts:
        for layer in part.layers:
            name = array_name(FINAL, part.group) if layer == FINAL else part.array
            wanted.setdefault(name, set()).add(layer)
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


def jobs(cache: Cache, request: ProbeRequest) -> list[HeadJob]:
    """What a request means for a cache: the baseline, then the heads asked for, none twice.

    Rows of a table whose tokens the cache does not hold are left out; see `left_out`.

    Raises:
        UnknownNameError: a layer, token kind or tap does not exist or is not cached.
        RequestError: the cache lacks a split.
        PartialCacheError: it is a partial copy that lacks some of it; the message has the command that fetches it.
    """
    if cache.partial:
        whole = replace(cache.manifest, inventory=cache.manifest.full_inventory, whole=None)
        cache.require(needed(whole, request))
    return _jobs(cache, request)


def _jobs(cache: Cache, request: ProbeRequest) -> list[HeadJob]:
    asked = []
    for row in request.rows:
        head = get_head(row.head)
        kinds = default_tokens(cache, head) if row.tokens is None else parse_kinds(row.tokens)
        if request.table is not None and missing_tokens(cache, kinds):
            continue
        layers = head.default_layers if row.layers is None else row.layers
        selection = select(cache, layers, kinds, request.tap)
        asked.append(make_job(head, selection, request))
    usual = request.settings().input

    def what(job: HeadJob) -> tuple[object, ...]:
        # The protocol's own input stage may be named, or not; for what is chosen, none means any.
        stage = job.input if job.solver == CHOICE else job.input or usual
        return job.head.name, job.selection.parts, job.solver, stage

    if request.tap != DEFAULT_TAP and all(job.selection.tap != request.tap for job in asked):
        raise RequestError(
            f"the tap {request.tap} is a place in the blocks, and the heads asked for see the final layer alone; say which blocks "
            "with --layers, or leave --tap out"
        )
    return list({what(job): job for job in (baseline(cache), *asked)}.values())


def left_out(cache: Cache, request: ProbeRequest) -> list[tuple[TableRow, str]]:
    """The rows of a table whose tokens the cache does not hold on the last layer, and which tokens those are."""
    if request.table is None:
        return []
    missing = [(row, missing_tokens(cache, parse_kinds(row.tokens or ""))) for row in request.rows]
    return [(row, "+".join(kinds)) for row, kinds in missing if kinds]


def _options(head: HeadInfo, selection: Selection, request: ProbeRequest) -> dict[str, Any]:
    """What a head takes: asked for, or following from the tokens."""
    options = {name: value for name, value in request.options.items() if name in head.options}
    if "num_heads" in head.options:
        options["num_heads"] = request.num_heads or options.get("num_heads") or _num_heads(selection)
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
