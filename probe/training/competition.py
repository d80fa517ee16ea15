"""The head ``auto``: heads and input stages compete on held-out samples of train; the best are averaged if that is better."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featcache.probing.heads import get_head
from featcache.probing.heads.blend import BlendHead
from featcache.probing.protocols.protocol import NO_FOLDS
from featcache.probing.requests.request import CLOSED_FORM, EXACT, HeadJob, ProbeRequest, make_job
from featcache.probing.results.rows import Chosen
from featcache.probing.scoring.tasks import as_tensor
from featcache.probing.training.auto import CANDIDATES, Candidate, Choice, choose
from featcache.probing.training.fitted import FitTask, FittedHead
from featcache.probing.training.full_batch import Size, check_whole
from featcache.probing.training.process import threads
from featcache.probing.training.sweep import finish, held_out_outputs, suitable_threads, tune
from featcache.probing.training.sweep_plan import make_splits
from featcache.store.errors import DivergedError, RequestError

if TYPE_CHECKING:
    from featcache.probing.training.fitting import Fitter


def choose_head(fitter: "Fitter", work: FitTask) -> FittedHead:
    """Let heads and input stages compete, and fit the best, or the average of the best.

    Raises:
        RequestError: the data are too large for every candidate.
        DivergedError: every candidate diverged.
    """
    started, candidates = time.perf_counter(), list[Candidate]()
    possible = _possible(fitter, work)
    if fitter.protocol.folds == NO_FOLDS:
        job, stage = possible[0]
        return replace(fitter, protocol=replace(fitter.protocol, input=stage)).fit_work(
            replace(work, job=job)
        )
    for job, stage in possible:
        own = replace(fitter, protocol=replace(fitter.protocol, input=stage))
        title = f"{work.title}: {job.head.name} on {stage}"
        try:
            candidates.append(_candidate(own, replace(work, job=job, title=title)))
        except DivergedError as error:
            fitter.reporter.message(f"note: {title} is left out: {error}")
            continue
        fitter.reporter.message(f"{title}: {work.task.metric} {candidates[-1].score:.4f} on held-out samples")
    splits = make_splits(work.targets, work.task, fitter.protocol, work.seed, work.train.groups)
    targets = as_tensor(work.targets)[torch.cat([held for _, held in splits])]
    listed = tuple({"head": one.head, "input": one.input, "score": one.score} for one in candidates)
    choice, parts = _finish_best(fitter, work, candidates, targets)
    if len(parts) == 1:
        return replace(parts[0], sweep=None, candidates=listed, seconds=time.perf_counter() - started)
    head = BlendHead.of([part.name for part in parts], [part.head for part in parts], work.task.kind)
    return FittedHead(
        head,
        work.task,
        sum(part.parameters for part in parts),
        choice.score,
        Chosen(),
        time.perf_counter() - started,
        "blend",
        " + ".join(f"{part.name} on {part.input}" for part in parts),
        candidates=listed,
    )


def _finish_best(
    fitter: "Fitter", work: FitTask, candidates: Sequence[Candidate], targets: Tensor
) -> tuple[Choice, list[FittedHead]]:
    """Fit the best choice on all of train; if a part of it diverges, fit the best choice without that part."""
    left = list(candidates)
    while left:
        choice, reason = choose(left, targets, work.task)
        fitter.reporter.message(f"{work.title} chose {reason}")
        parts: list[FittedHead] = []
        for part in choice.parts:
            try:
                parts.append(part.finish())
            except DivergedError as error:
                fitter.reporter.message(f"note: {work.title}: {part} is left out: {error}")
                left.remove(part)
        if len(parts) == len(choice.parts):
            return choice, parts
    raise DivergedError("every candidate diverged")


def _possible(fitter: "Fitter", work: FitTask) -> list[tuple[HeadJob, str]]:
    """Return the candidates, each a job and an input stage, whose method can handle data of this size."""
    tokens = work.train.tokens
    size = Size.of(tokens.num_samples, tokens.width, work.task.num_outputs, fitter.protocol)
    possible = []
    for name, stage in CANDIDATES[work.task.kind]:
        if work.job.input not in (None, stage):
            continue
        job = make_job(get_head(name), work.job.selection, ProbeRequest(heads="auto"))
        try:
            check_whole(job, size, fitter.device, fitter.limit)
        except RequestError as error:
            fitter.reporter.message(f"{work.title}: {name} on {stage} is left out: {error}")
        else:
            possible.append((job, stage))
    if not possible:
        raise RequestError(f"nothing is left for auto on the input stage {work.job.input}; leave --input out")
    return possible


def _candidate(fitter: "Fitter", work: FitTask) -> Candidate:
    name, stage = work.job.head.name, fitter.protocol.input
    if work.job.solver in (EXACT, CLOSED_FORM):
        # These heads are fitted in seconds, so the final fit is done at once.
        fitted, held_out = (fitter.solved if work.job.solver == EXACT else fitter.computed)(work)
        return Candidate(name, stage, fitted.validation, held_out.cpu(), lambda: fitted)
    sweep, started = fitter.plan(work), time.perf_counter()
    with threads(suitable_threads(sweep)):
        unfinished = fitter.unfinished(replace(work, run=f"{work.run}-{name}-{stage}"))
        found, options = fitter.sweep(work, sweep, unfinished, tune)
        fitter.tell_diverged(work, found.diverged)
        # For members of an earlier run, only the score is known.
        held_out = found.held_out if len(found.held_out) else held_out_outputs(sweep, found.member, options)
    seconds = time.perf_counter() - started

    def finish_it() -> FittedHead:
        with threads(suitable_threads(sweep)):
            member, head, _ = finish(
                sweep, replace(found, validation={found.member: found.validation[found.member]}), options
            )
        return fitter.trained(work, member, found.validation, head, seconds)

    return Candidate(name, stage, found.validation[found.member], held_out, finish_it)
