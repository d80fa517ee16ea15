"""The head jobs that follow from a request and a cache. No torch, so that a wrong name shows at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.probing.heads import HeadInfo, get_head
from featcache.probing.heads.info import AUTO as AUTO_HEAD
from featcache.probing.heads.info import BY_LAYER as BY_LAYER_HEAD
from featcache.probing.heads.info import CLOSED_FORM as CLOSED_FORM_HEAD
from featcache.probing.heads.info import EXACT as EXACT_HEAD
from featcache.probing.heads.info import SOLVED_HEAD, ZERO_SHOT
from featcache.probing.inputs.selection import Part, Selection, default_tokens, missing_tokens, select
from featcache.probing.requests.request import (
    ADAMW,
    BEST_LAYER,
    CHOICE,
    CLOSED_FORM,
    EXACT,
    L2,
    LAYER_CHOICE,
    SOLVED,
    TEXT,
    TRAINED,
    HeadRequest,
    ProbeRequest,
)
from featcache.probing.scoring.kinds import SINGLE_LABEL
from featcache.store.errors import RequestError
from featcache.store.inventory import DEFAULT_TAP, SPLITS, Inventory
from featcache.store.layers import FINAL, as_layers
from featcache.store.manifest import Manifest
from featcache.store.reading.reader import Cache
from featcache.store.token_groups import EMBEDDING, POOLED, STATISTICS, array_name, of_view
from featcache.store.views import PLAIN_VIEW

if TYPE_CHECKING:
    from featcache.probing.heads.base import Head

PATCH_HEADS = 8
WITH_TEXT_TOWER = "open_clip:"
"""Beginning of the architectures of models with a text tower."""
IMAGE_EMBEDDING = Selection(
    "last", (FINAL,), (EMBEDDING,), (Part(POOLED, (FINAL,), (EMBEDDING,), tap=EMBEDDING),)
)
"""What zero-shot sees: the model's output for an image, cached as it is or as a product of a final token."""


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
    """Input transform; that of the protocol if not given."""
    baseline: str | None = None
    """Name of the baseline that the job is, one of `BASELINES`; None for any other job."""
    implied: bool = False
    """Whether the request names neither this head nor this baseline."""

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
    fixed = {CLOSED_FORM_HEAD: CLOSED_FORM, EXACT_HEAD: EXACT, AUTO_HEAD: CHOICE, BY_LAYER_HEAD: LAYER_CHOICE}
    solver = fixed.get(head.fitting, request.solver)
    if solver == LAYER_CHOICE and not selection.same_in_every_layer:
        raise _other_tokens_by_layer(head, selection)
    if solver == EXACT:
        head = get_head(SOLVED_HEAD)
    return HeadJob(
        head, selection, _options(head, selection, request), solver, request.penalty, request.input
    )


def baselines(cache: Cache, request: ProbeRequest) -> list[HeadJob]:
    """Return the baselines of a cache, in the order of `BASELINES`, all through the protocol's input transform.

    The solved linear probe is `logreg`, or for label sets and numbers `ridge`, on the tokens of the trained one: the class token of
    the last layer. `best-layer` is left out where the cache holds a single layer.
    """
    head, best = get_head("linear"), get_head(BEST_LAYER)
    last = select(cache, as_layers(head.default_layers), default_tokens(cache, head))
    kind = request.target_kind or cache.inventory.target_kind
    solved, solver = (SOLVED_HEAD, EXACT) if kind == SINGLE_LABEL else ("ridge", CLOSED_FORM)
    found = [
        HeadJob(head, last, baseline=TRAINED),
        HeadJob(get_head(solved), last, solver=solver, baseline=SOLVED),
    ]
    layers = held_layers(cache, best)
    if len(layers) > 1:
        every = select(cache, as_layers(",".join(layers)), default_tokens(cache, best))
        found.append(HeadJob(best, every, solver=LAYER_CHOICE, baseline=BEST_LAYER))
    return found


def held_layers(cache: Cache, head: HeadInfo) -> list[str]:
    """Return those of a head's own layers that all splits hold at the default tap."""
    names = as_layers(head.default_layers).of(cache.spec.backbone.num_layers)
    kinds = {*default_tokens(cache, head)}
    splits = [cache.inventory.splits[split].arrays for split in SPLITS if split in cache.inventory.splits]

    def is_held(layer: str) -> bool:
        arrays = [split.get(FINAL if layer == FINAL else DEFAULT_TAP) for split in splits]
        return all(array and layer in array.layers and kinds <= {*array.tokens} for array in arrays)

    def width(layer: str) -> int:
        return splits[0][FINAL if layer == FINAL else DEFAULT_TAP].row_shape[-1]

    held = [name for name in names if is_held(name)]
    # A job has tokens of one width.
    return held if len({width(layer) for layer in held}) < 2 else held[-1:]


def fitted_jobs(cache: Cache, job: HeadJob) -> list[HeadJob]:
    """Return the jobs that a job is fitted by: itself, or where the layer is chosen, ridge on every layer alone."""
    if job.solver != LAYER_CHOICE:
        return [job]
    ridge, selection = get_head("ridge"), job.selection
    tap = DEFAULT_TAP if selection.tap == FINAL else selection.tap
    return [
        HeadJob(
            ridge,
            select(cache, as_layers(layer), selection.kinds, tap, selection.views),
            solver=CLOSED_FORM,
            input=job.input,
        )
        for layer in selection.layers
    ]


def final_job(ridge: HeadJob, kind: str) -> HeadJob:
    """Return the job of the head on a chosen layer: the solved linear probe, which of single labels is another than `ridge`."""
    if kind != SINGLE_LABEL:
        return ridge
    return replace(ridge, head=get_head(SOLVED_HEAD), solver=EXACT)


def needed(whole: Manifest, request: ProbeRequest) -> Inventory:
    """The part of a cache that a request needs, told from its manifest alone.

    Raises:
        UnknownNameError, RequestError: as for `jobs`.
    """
    wanted: dict[str, set[str]] = {}
    for job in _jobs(Cache(Path(), whole), request):
        if job.implied and job.baseline == BEST_LAYER:
            continue  # a baseline that nobody asks for is no reason to fetch all layers
        names = ["" if view == PLAIN_VIEW else view for view in job.selection.views]
        for part, view in product(job.selection.parts, names):
            for layer in part.layers:
                name = array_name(FINAL, part.group) if layer == FINAL else part.array
                wanted.setdefault(of_view(name, view), set()).add(layer)
        if job.solver == TEXT and all(EMBEDDING in split.arrays for split in whole.inventory.splits.values()):
            wanted.setdefault(EMBEDDING, set()).add(FINAL)
    return whole.inventory.select(SPLITS, wanted)


def jobs(cache: Cache, request: ProbeRequest) -> list[HeadJob]:
    """What a request means for a cache: the baselines, then the heads asked for, none twice.

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
        head = row.head
        if head.fitting == ZERO_SHOT:
            asked.append(HeadJob(head, IMAGE_EMBEDDING, solver=TEXT))
            continue
        kinds = default_tokens(cache, head) if row.tokens is None else row.tokens
        if request.table is not None and missing_tokens(cache, kinds):
            continue
        layers = as_layers(head.default_layers) if row.layers is None else row.layers
        selection = select(cache, layers, kinds, request.tap, request.views)
        asked.append(make_job(head, selection, request))
    usual = request.settings().input

    def what(job: HeadJob) -> tuple[object, ...]:
        # The protocol's own input transform may be named, or not; for what is chosen, none means any.
        transform = job.input if job.solver == CHOICE else job.input or usual
        return (
            job.head.name,
            job.selection.parts,
            job.selection.views,
            job.solver,
            job.penalty if job.solver == EXACT else "",
            transform,
        )

    if request.tap != DEFAULT_TAP and all(
        job.selection.tap != request.tap for job in asked if job.solver != TEXT
    ):
        raise RequestError(
            f"the tap {request.tap} is a place in the blocks, and the heads asked for see the final layer alone; say which blocks "
            "with --layers, or leave --tap out"
        )
    found = {what(job): job for job in asked}
    first: dict[tuple[object, ...], HeadJob] = {}
    for job in baselines(cache, request):
        if what(job) in found:
            first[what(job)] = job
        elif request.baselines is None or job.baseline in request.baselines:
            first[what(job)] = replace(job, implied=request.baselines is None)
    return list((first | {key: job for key, job in found.items() if key not in first}).values())


def left_out(cache: Cache, request: ProbeRequest) -> list[tuple[HeadRequest, str]]:
    """The rows of a table whose tokens the cache does not hold on the last layer, and which tokens those are."""
    if request.table is None:
        return []
    missing = [(row, missing_tokens(cache, row.tokens or ())) for row in request.rows]
    return [(row, "+".join(kinds)) for row, kinds in missing if kinds]


def _options(head: HeadInfo, selection: Selection, request: ProbeRequest) -> dict[str, Any]:
    """What a head takes: asked for, or following from the tokens."""
    options = {name: value for name, value in request.options.items() if name in head.options}
    if "num_heads" in head.options:
        options["num_heads"] = request.num_heads or options.get("num_heads") or _num_heads(selection)
    if head.by_layer:
        if not selection.same_in_every_layer:
            raise _other_tokens_by_layer(head, selection)
        options["num_layers"] = len(selection.layers)
    return options


def _other_tokens_by_layer(head: HeadInfo, selection: Selection) -> RequestError:
    return RequestError(
        f"head {head.name!r} needs the same tokens of every layer; ask for --tokens cls, ap, {', '.join(STATISTICS)} or "
        f"several of them, such as cls+ap, not {selection.token_names}"
    )


def _num_heads(selection: Selection) -> int:
    """The number of heads of arXiv 2601.09322: one for each token of a layer, 8 for the patches of a layer."""
    return selection.num_tokens if selection.same_in_every_layer else PATCH_HEADS
