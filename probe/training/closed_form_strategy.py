"""Fit a head by formula: validation chooses among the settings of its grid."""

from torch import Tensor

from featcache.probing.results.rows import Chosen
from featcache.probing.training.auto import Candidate
from featcache.probing.training.closed_form import ends_of_grid, run_closed_form_sweep
from featcache.probing.training.fitted import FitTask, FittedHead, count_parameters, record_sweep
from featcache.probing.training.out_of_core import streamed_plan
from featcache.probing.training.strategy import FitSettings


class ClosedFormStrategy:
    """Computes a head for all settings at once; see `featcache.probing.training.strategy.CandidateStrategy`."""

    def fit(self, fit_task: FitTask, settings: FitSettings) -> FittedHead:
        """Compute the head for every setting and keep the best."""
        return self._compute(fit_task, settings)[0]

    def candidate(self, fit_task: FitTask, settings: FitSettings) -> Candidate:
        """Compute the head for every setting; the final fit, which takes seconds, is part of it."""
        return Candidate.of(*self._compute(fit_task, settings))

    def _compute(self, fit_task: FitTask, settings: FitSettings) -> tuple[FittedHead, Tensor]:
        """Return the head and its outputs ``[R, O]`` on held-out samples."""
        plan = streamed_plan(fit_task, settings)
        with settings.reporter.progress(fit_task.title, "fits") as update:
            result = run_closed_form_sweep(
                fit_task.job.head,
                fit_task.train.tokens,
                fit_task.targets,
                protocol=settings.protocol,
                seed=fit_task.seed,
                task=fit_task.task,
                sample_groups=fit_task.train.groups,
                device=settings.device,
                memory=settings.memory,
                block_rows=None if plan is None else plan.block_rows,
                on_progress=update,
            )
        # A head's own factor, which makes logits of its outputs, is not part of what was compared.
        compared = {name: value for name, value in result.settings.items() if name != "factor"}
        for note in ends_of_grid(result.validation, compared):
            settings.reporter.message(f"note: {fit_task.title}: {note}")
        fitted = FittedHead(
            result.head,
            fit_task.task,
            count_parameters(result.head),
            validation=next(score for values, score in result.validation if dict(values) == compared),
            chosen=Chosen(settings=dict(result.settings)),
            seconds=result.seconds,
            name=fit_task.job.head.name,
            input=settings.protocol.input,
            sweep=record_sweep(fit_task.task, result.validation, compared),
        )
        return fitted, result.held_out
