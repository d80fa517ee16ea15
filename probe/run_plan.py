"""The runs that a request means on one cache: what identifies each, and the checks before anything is trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Self

import torch

from featcache.devices.precision import training_precision
from featcache.probing.corrections import corrections
from featcache.probing.inputs.data import check_memory, split_bytes, stream_window
from featcache.probing.inputs.grouped import groups_of
from featcache.probing.inputs.memory import TRAIN, Budget
from featcache.probing.protocols.protocol import Protocol, batch_size
from featcache.probing.repetitions import Repetition, requested_repetitions, title_of
from featcache.probing.requests.jobs import WITH_TEXT_TOWER, HeadJob, final_job, fitted_jobs
from featcache.probing.requests.request import (
    ADAMW,
    BASELINES,
    CHOICE,
    EXACT,
    LAYER_CHOICE,
    TEXT,
    ProbeRequest,
)
from featcache.probing.results.rows import run_id
from featcache.probing.results.saved_head import views_in
from featcache.probing.results.solved_rows import FORMER_HEAD
from featcache.probing.scoring.kinds import REGRESSION, REGRESSION_LOSSES
from featcache.probing.scoring.tasks import kind_of
from featcache.probing.training.full_batch import check_outputs, check_whole
from featcache.probing.training.size import Size
from featcache.store.errors import RequestError
from featcache.store.files import JsonObject, canonical_json, sha256_hex
from featcache.store.reading.reader import Cache
from featcache.store.text import format_bytes
from featcache.store.views import PLAIN_VIEW

MOST_PRODUCTS = 10**10
"""Largest product of samples, channels and classes of a solved baseline that nobody asked for: one gradient takes less than a second
on a few cores, and a path of penalties takes hundreds to thousands."""
FEW_SHOTS, FEW_SHOT_FOLDS = 10, 5
"""With fewer samples of each class the choice is by folds, at most so many."""


@dataclass(frozen=True)
class ProbeContext:
    """Everything that the runs of a request on one cache share."""

    cache: Cache
    request: ProbeRequest
    device: torch.device
    protocol: Protocol
    """The protocol of the request; a run may differ from it in input transform and folds."""
    precision: str
    budget: Budget
    target_kind: str
    """Target type: single-label, multi-label or regression."""
    groups: Mapping[str, str] | None
    """Group of every sample id; None if the request has no groups."""

    @classmethod
    def of(cls, cache: Cache, request: ProbeRequest, device: torch.device) -> Self:
        """Resolve what a request leaves open.

        Raises:
            RequestError: a sample of train has no group.
        """
        if request.groups is not None:
            groups_of(cache["train"].sample_ids(), request.groups)
        return cls(
            cache,
            request,
            device,
            protocol=request.settings(),
            precision=training_precision(request.precision, device),
            budget=Budget.of(request.memory, device),
            target_kind=request.target_kind or kind_of(cache["train"].labels()),
            groups=request.groups,
        )


@dataclass(frozen=True)
class Run:
    """One repetition of a job on one cache."""

    job: HeadJob
    repetition: Repetition
    protocol: Protocol
    """With the job's input transform, and the folds of a few-shot run."""
    id: str
    """Digest of everything that determines the outcome."""
    setup: str
    """Digest of everything that was asked for but seed and draw."""
    former_id: str | None
    """The id that earlier versions gave to the same run, where it was another."""

    @property
    def title(self) -> str:
        """Name of the run in messages."""
        return title_of(self.job, self.repetition)


def plan_runs(context: ProbeContext, job: HeadJob) -> list[Run]:
    """Return the runs of a job: every seed, and every draw of every number of shots."""
    return [_plan_run(context, job, repetition) for repetition in requested_repetitions(context.request)]


def check_job(context: ProbeContext, job: HeadJob) -> None:
    """Refuse a job that cannot be trained, before any job is.

    Raises:
        RequestError: the head cannot have this size or these targets, or the memory does not hold what it needs.
    """
    request, reader = context.request, context.cache["train"]
    if job.solver == TEXT:
        job.head.check_kind(context.target_kind)
        architecture = context.cache.spec.backbone.architecture
        if not architecture.startswith(WITH_TEXT_TOWER):
            raise RequestError(
                f"{context.cache.directory}: {architecture} has no text tower; zero-shot is for caches of open_clip's models, such as "
                "vit-l-14"
            )
        return
    if job.solver == LAYER_CHOICE:
        for candidate in fitted_jobs(context.cache, job):
            check_job(context, candidate)
            check_job(context, final_job(candidate, context.target_kind))
        return
    views = job.selection.views
    width = job.selection.parts[0].of(reader, views[0]).width
    num_outputs = len(context.cache.inventory.class_names)
    with torch.device("meta"):
        job.build(job.selection.num_tokens, width, num_outputs, (0.0,))
    if job.solver != CHOICE:
        job.head.check_kind(context.target_kind)
    if request.regression_loss != REGRESSION_LOSSES[0] and context.target_kind != REGRESSION:
        raise RequestError(
            f"the loss {request.regression_loss} is for regression targets, and these are {context.target_kind}; leave --loss out"
        )
    # Runs with shots use few samples, whatever the size of train.
    num_samples = len(views) * reader.num_samples if not request.shots else 0
    size = Size.of(num_samples, width, num_outputs, context.protocol, len(views))
    if num_samples:
        check_whole(job, size, context.device, request.memory)
    check_outputs(job, size, len(views) * context.cache["test"].num_samples, request.memory)
    if job.solver in (ADAMW, CHOICE):
        largest_batch = batch_size(len(views) * reader.num_samples, context.protocol)
        check_memory(reader, job.selection, largest_batch, context.budget)


def size_note(context: ProbeContext, job: HeadJob) -> str | None:
    """Return a note on a solved baseline whose solution takes more than minutes; None where it is quick."""
    reader = context.cache["train"]
    width, outputs = (
        job.selection.parts[0].of(reader, job.selection.views[0]).width,
        len(context.cache.inventory.class_names),
    )
    few = max(context.request.shots, default=reader.num_samples) * outputs
    num_samples = min(reader.num_samples, few)
    if num_samples * width * outputs <= MOST_PRODUCTS:
        return None
    return (
        f"{num_samples:,} samples of {width:,} channels and {outputs:,} classes take long to solve; --baselines "
        f"{','.join(BASELINES)} fits it all the same"
    )


def streaming_note(context: ProbeContext, job: HeadJob) -> str | None:
    """Return a note on train tokens that do not fit into memory, since runs on them have ids of their own; None if they fit."""
    reader, limit = context.cache["train"], context.budget.for_tokens(TRAIN)
    # Layers among which one is chosen are loaded one after another.
    job = fitted_jobs(context.cache, job)[0]
    if job.solver == TEXT or stream_window(reader, job.selection, limit) is None:
        return None
    size = split_bytes(reader, job.selection)
    return (
        f"the train tokens of {job.selection.name} take {format_bytes(size)}, more than the {format_bytes(limit)} for them, so they "
        "are streamed; rows then come in another order, so these runs are others than those with all tokens in memory "
        f"(--memory {-(-2 * size // 10**6)}MB or more)"
    )


def _plan_run(context: ProbeContext, job: HeadJob, repetition: Repetition) -> Run:
    protocol = _protocol_of(context, job, repetition)
    setup = _setup(context, job, protocol)
    outcome = {
        **setup,
        "trial": asdict(repetition),
        # The order of the rows depends on it.
        "window": _window(context, job),
        "device": context.device.type,
        "version": version("featcache"),
    }
    return Run(
        job,
        repetition,
        protocol,
        id=run_id(outcome),
        setup=run_id({**setup, "shots": repetition.shots}),
        former_id=run_id({**outcome, "head": FORMER_HEAD}) if job.solver == EXACT else None,
    )


def _window(context: ProbeContext, job: HeadJob) -> int | None:
    if job.solver == TEXT:
        return None
    selection = fitted_jobs(context.cache, job)[0].selection
    return stream_window(context.cache["train"], selection, context.budget.for_tokens(TRAIN))


def _protocol_of(context: ProbeContext, job: HeadJob, repetition: Repetition) -> Protocol:
    """Return the protocol with the job's input transform; few shots are divided into folds, unless the request says how."""
    protocol = replace(context.protocol, input=job.input or context.protocol.input)
    if repetition.shots is None or repetition.shots >= FEW_SHOTS or context.request.folds is not None:
        return protocol
    return replace(protocol, folds=min(FEW_SHOT_FOLDS, repetition.shots), folds_below=None)


def _setup(context: ProbeContext, job: HeadJob, protocol: Protocol) -> JsonObject:
    """Return everything that is asked for but the repetition."""
    kind, groups = context.target_kind, context.groups
    corrected = corrections(job, context.protocol.input, kind)
    return {
        **({"corrections": corrected} if corrected else {}),
        **({"templates": list(context.request.templates)} if job.solver == TEXT else {}),
        **({} if groups is None else {"groups": sha256_hex(canonical_json(groups))}),
        "cache_key": context.cache.key,
        # A partial cache gives other scores than the same cache completed.
        "blocks": len(context.cache.manifest.blocks),
        "head": job.head.name,
        "tokens": [[part.array, part.layers, part.tokens] for part in job.selection.parts],
        **_views(context, job),
        "options": dict(job.options),
        "solver": [job.solver, job.penalty] if job.solver == EXACT else [job.solver],
        "targets": [kind, *([context.request.regression_loss] if kind == REGRESSION else [])],
        "precision": context.precision,
        "protocol": asdict(protocol),
    }


def _views(context: ProbeContext, job: HeadJob) -> JsonObject:
    """Return the views of a job and how they are made; nothing for the plain one, whose runs keep their ids."""
    names = job.selection.views
    if names == (PLAIN_VIEW,):
        return {}
    views = views_in(context.cache, names)
    return {"views": [list(names), {view.name: view.to_dict() for view in views}]}
