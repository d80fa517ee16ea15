"""Fit a linear head by the exact solver: validation chooses the penalty."""

from typing import cast

import torch
from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.probing.requests.jobs import HeadJob
from featcache.probing.requests.request import GROUP_LASSO
from featcache.probing.results.rows import Chosen
from featcache.probing.solver.exact import ExactResult, PenaltyKind, run_exact_sweep
from featcache.probing.training.auto import Candidate
from featcache.probing.training.fitted import FitTask, FittedHead, count_parameters, record_sweep
from featcache.probing.training.out_of_core import (
    noted_interruption,
    open_journal,
    remove_journals,
    report_first_pass,
    streamed_plan,
)
from featcache.probing.training.strategy import FitSettings


class ExactStrategy:
    """Solves for one penalty after another; see `featcache.probing.training.strategy.CandidateStrategy`."""

    def fit(self, fit_task: FitTask, settings: FitSettings) -> FittedHead:
        """Solve for every penalty and keep the best."""
        fitted = self._solve(fit_task, settings)[0]
        remove_journals(fit_task, settings)
        return fitted

    def candidate(self, fit_task: FitTask, settings: FitSettings) -> Candidate:
        """Solve for every penalty; the final fit is part of it. Solutions stay in their journal until ``auto`` has a result."""
        return Candidate.of(*self._solve(fit_task, settings))

    def _solve(self, fit_task: FitTask, settings: FitSettings) -> tuple[FittedHead, Tensor]:
        """Return the head and its outputs ``[R, O]`` on held-out samples."""
        job, train, task = fit_task.job, fit_task.train, fit_task.task
        layers = [layer for layer, _ in job.selection.places()]
        names = list(dict.fromkeys(layers))
        plan = streamed_plan(fit_task, settings)
        journal = open_journal(fit_task, settings)
        with (
            settings.reporter.progress(fit_task.title, "solutions") as update,
            noted_interruption(fit_task, settings),
        ):
            result = run_exact_sweep(
                train.tokens,
                fit_task.targets,
                protocol=settings.protocol,
                seed=fit_task.seed,
                num_classes=task.num_outputs,
                penalty_kind=cast(PenaltyKind, job.penalty),
                groups=[names.index(layer) for layer in layers],
                sample_groups=train.groups,
                device=settings.device,
                on_progress=update,
                plan=plan,
                memory=settings.memory,
                journal=journal,
                on_pass=report_first_pass(fit_task, settings),
            )
        for note in result.notes:
            settings.reporter.message(f"note: {fit_task.title}: {note}")
        kept = [names[group] for group in result.kept_groups] if job.penalty == GROUP_LASSO else None
        head = _linear_head(job, train.tokens.num_tokens, train.tokens.width, result)
        fitted = FittedHead(
            head,
            task,
            count_parameters(head),
            validation=result.validation[result.penalty],
            chosen=Chosen(penalty=result.penalty, converged=result.certificate.converged, kept_layers=kept),
            seconds=result.seconds,
            name=job.head.name,
            input=settings.protocol.input,
            sweep=record_sweep(
                task,
                [({"penalty": penalty}, score) for penalty, score in result.validation.items()],
                {"penalty": result.penalty},
            ),
        )
        return fitted, result.held_out


def _linear_head(job: HeadJob, num_tokens: int, width: int, result: ExactResult) -> Head:
    """Return a head of one member with the solution as its parameters."""
    with torch.device("meta"):  # nothing is drawn
        head = job.head.build(num_tokens, width, result.num_classes)
    head.load_member({"classifier.weight": result.weight, "classifier.bias": result.bias})
    head.input_transform = result.input_transform
    return head.eval()
