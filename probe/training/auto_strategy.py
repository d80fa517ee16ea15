"""Fit the head ``auto``: heads and input transforms compete on held-out samples of train; the best are averaged if that is better."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featcache.probing.heads import get_head
from featcache.probing.heads.blend import BlendHead
from featcache.probing.protocols.protocol import NO_FOLDS
from featcache.probing.requests.jobs import HeadJob, make_job
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.rows import Chosen
from featcache.probing.scoring.tasks import as_tensor
from featcache.probing.training.auto import CANDIDATES, Candidate, Choice, choose
from featcache.probing.training.fitted import FitTask, FittedHead
from featcache.probing.training.full_batch import check_whole
from featcache.probing.training.out_of_core import remove_journals
from featcache.probing.training.size import Size
from featcache.probing.training.strategy import CandidateStrategy, FitSettings
from featcache.probing.training.sweep_plan import make_splits
from featcache.store.errors import DivergedError, RequestError


@dataclass(frozen=True)
class AutoStrategy:
    """Lets candidates compete, and fits the best, or the average of the best; see `featcache.probing.training.strategy.FitStrategy`."""

    strategies: Mapping[str, CandidateStrategy]
    """How candidates are fitted, by the solver of their job."""

    def fit(self, fit_task: FitTask, settings: FitSettings) -> FittedHead:
        """Compare the candidates and fit the choice.

        Raises:
            RequestError: the data are too large for every candidate.
            DivergedError: every candidate diverged.
        """
        started = time.perf_counter()
        possible = _possible(fit_task, settings)
        if settings.protocol.folds == NO_FOLDS:
            job, transform = possible[0]
            alone = replace(fit_task, job=job)
            return self.strategies[job.solver].fit(alone, _on_transform(settings, transform))
        candidates = self._compare(fit_task, settings, possible)
        splits = make_splits(
            fit_task.targets,
            fit_task.task,
            settings.protocol,
            fit_task.seed,
            fit_task.train.groups,
            fit_task.train.num_views,
        )
        targets = as_tensor(fit_task.targets)[torch.cat([held for _, held in splits])]
        choice, parts = _finish_best(fit_task, settings, candidates, targets)
        remove_journals(fit_task, settings)
        listed = tuple({"head": each.head, "input": each.input, "score": each.score} for each in candidates)
        seconds = time.perf_counter() - started
        if len(parts) == 1:
            return replace(parts[0], sweep=None, candidates=listed, seconds=seconds)
        return replace(_average(fit_task, choice, parts), candidates=listed, seconds=seconds)

    def _compare(
        self, fit_task: FitTask, settings: FitSettings, possible: Sequence[tuple[HeadJob, str]]
    ) -> list[Candidate]:
        """Fit every candidate without the held-out samples; candidates that diverge are left out."""
        candidates = []
        for job, transform in possible:
            title = f"{fit_task.title}: {job.head.name} on {transform}"
            own = replace(fit_task, job=job, title=title)
            try:
                candidate = self.strategies[job.solver].candidate(own, _on_transform(settings, transform))
            except DivergedError as error:
                settings.reporter.message(f"note: {title} is left out: {error}")
                continue
            candidates.append(candidate)
            settings.reporter.message(
                f"{title}: {fit_task.task.metric} {candidate.score:.4f} on held-out samples"
            )
        return candidates


def _on_transform(settings: FitSettings, transform: str) -> FitSettings:
    """Return the settings with another input transform."""
    return replace(settings, protocol=replace(settings.protocol, input=transform))


def _possible(fit_task: FitTask, settings: FitSettings) -> list[tuple[HeadJob, str]]:
    """Return the candidates, each a job and an input transform, whose method can handle data of this size."""
    tokens, asked = fit_task.train.tokens, fit_task.job
    size = Size.of(
        tokens.num_samples, tokens.width, fit_task.task.num_outputs, settings.protocol, tokens.num_views
    )
    possible = []
    for name, transform in CANDIDATES[fit_task.task.kind]:
        if asked.input not in (None, transform):
            continue
        job = make_job(get_head(name), asked.selection, ProbeRequest(heads="auto"))
        try:
            check_whole(job, size, settings.device, settings.memory_limit)
        except RequestError as error:
            settings.reporter.message(f"{fit_task.title}: {name} on {transform} is left out: {error}")
        else:
            possible.append((job, transform))
    if not possible:
        raise RequestError(
            f"nothing is left for auto on the input transform {asked.input}; leave --input out"
        )
    return possible


def _finish_best(
    fit_task: FitTask, settings: FitSettings, candidates: Sequence[Candidate], targets: Tensor
) -> tuple[Choice, list[FittedHead]]:
    """Fit the best choice on all of train; if a part of it diverges, fit the best choice without that part."""
    left = list(candidates)
    while left:
        choice, reason = choose(left, targets, fit_task.task)
        settings.reporter.message(f"{fit_task.title} chose {reason}")
        parts: list[FittedHead] = []
        for part in choice.parts:
            try:
                parts.append(part.finish())
            except DivergedError as error:
                settings.reporter.message(f"note: {fit_task.title}: {part} is left out: {error}")
                left.remove(part)
        if len(parts) == len(choice.parts):
            return choice, parts
    raise DivergedError("every candidate diverged")


def _average(fit_task: FitTask, choice: Choice, parts: Sequence[FittedHead]) -> FittedHead:
    """Join the fitted parts of a choice in a head that averages them."""
    return FittedHead(
        BlendHead.of([part.name for part in parts], [part.head for part in parts], fit_task.task.kind),
        fit_task.task,
        sum(part.parameters for part in parts),
        validation=choice.score,
        chosen=Chosen(),
        seconds=0.0,
        name="blend",
        input=" + ".join(f"{part.name} on {part.input}" for part in parts),
    )
