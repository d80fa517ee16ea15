"""One head, chosen and fitted on train: by training the members of a protocol, or by solving for a linear head exactly."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from featcache.probe.data import SplitData
from featcache.probe.estimate import estimate_sweep
from featcache.probe.heads.base import Head
from featcache.probe.process import threads
from featcache.probe.protocol import Protocol
from featcache.probe.request import EXACT, GROUP_LASSO, Job
from featcache.probe.results import Chosen
from featcache.probe.solver.exact import PenaltyKind, run_exact_sweep
from featcache.probe.sweep import Sweep, SweepOptions, SweepResult, group_size, plan_sweep, run_sweep
from featcache.probe.unfinished import Unfinished
from featcache.store.progress import Reporter

# A group of members is cut so that about this many seconds of work are the most that an interruption loses.
GROUP_SECONDS = 300.0
# Floating-point operations of a training step, below which one thread does it. Threads meet after every operation: two bring
# little where operations are small, and where another program is at work on the same cores they are many times slower.
SMALL_STEP = 3e9


@dataclass(frozen=True)
class Fitted:
    """A head, fitted on all of train, and how it was chosen."""

    head: Head
    num_classes: int
    parameters: int
    validation: float
    """Balanced accuracy of the chosen settings on the held-out part."""
    chosen: Chosen
    seconds: float


@dataclass(frozen=True)
class Fitter:
    """Everything that the fits of a probe share."""

    protocol: Protocol
    device: torch.device
    precision: str
    memory: int
    """Bytes for the members that train together."""
    out: Path
    force: bool
    reporter: Reporter

    def fit(self, job: Job, seed: int, run: str, title: str, train: SplitData) -> Fitted:
        """Choose and fit a head.

        Args:
            job: head and tokens.
            seed: fixes everything that is drawn.
            run: id of the run, under which unfinished work is kept.
            title: what the user is shown.
            train: the train split.
        """
        how = self._solve if job.solver == EXACT else self._train
        return how(job, seed, run, title, train)

    def _train(self, job: Job, seed: int, run: str, title: str, train: SplitData) -> Fitted:
        sweep = plan_sweep(
            job.build,
            train.tokens,
            train.labels,
            protocol=self.protocol,
            has_dropout=job.head.has_dropout,
            seed=seed,
        )
        with threads(step_threads(sweep)):
            result = self._sweep(title, sweep, Unfinished(self.out, run), train.streamed)
        member = result.member
        return Fitted(
            result.head,
            result.num_classes,
            result.num_parameters,
            result.validation[member],
            Chosen(member.learning_rate, member.weight_decay, member.dropout),
            result.seconds,
        )

    def _sweep(self, title: str, sweep: Sweep, unfinished: Unfinished, streamed: bool) -> SweepResult:
        """Run a sweep, from where an earlier run was interrupted."""
        finished = {} if self.force else unfinished.read()
        options = SweepOptions(
            self.device,
            self.precision,
            memory=self.memory,
            finished=finished,
            on_group=unfinished.write,
        )
        estimate = estimate_sweep(sweep, options)
        if estimate.seconds > 2 * GROUP_SECONDS:
            most = estimate.group_of(GROUP_SECONDS, sweep.tuning.num_steps)
            options = replace(options, group_size=min(most, group_size(sweep, options)))
        self.reporter.message(
            f"{title}: {len(sweep.members)} members x {sweep.tuning.num_steps:,} updates in batches of "
            f"{sweep.tuning.batch_size:,}, {self.precision}{', streamed' if streamed else ''}"
            + (f", {len(finished)} members from an interrupted run" if finished else "")
            + f"; about {_duration(estimate.seconds)}"
        )
        try:
            with self.reporter.progress(title, "updates") as update:
                result = run_sweep(sweep, replace(options, on_progress=update))
        except KeyboardInterrupt:
            kept = len(unfinished.read())
            self.reporter.message(
                f"{kept} of {len(sweep.members)} members are kept; the same command goes on"
            )
            raise
        unfinished.remove()
        return result

    def _solve(self, job: Job, seed: int, run: str, title: str, train: SplitData) -> Fitted:
        layers = [layer for layer, _ in job.selection.places()]
        names = list(dict.fromkeys(layers))
        with self.reporter.progress(title, "solutions") as update:
            result = run_exact_sweep(
                train.tokens,
                train.labels,
                protocol=self.protocol,
                seed=seed,
                penalty_kind=cast(PenaltyKind, job.penalty),
                groups=[names.index(layer) for layer in layers],
                device=self.device,
                on_progress=update,
            )
        for note in result.notes:
            self.reporter.message(f"note: {title}: {note}")
        size = (train.tokens.num_tokens, train.tokens.width, result.num_classes)
        head = job.head.build(*size).to(result.weight.device)
        head.load_member({"classifier.weight": result.weight, "classifier.bias": result.bias})
        kept = [names[group] for group in result.kept_groups] if job.penalty == GROUP_LASSO else None
        chosen = Chosen(penalty=result.penalty, converged=result.certificate.converged, kept_layers=kept)
        score = result.validation[result.penalty]
        parameters = result.weight.numel() + result.bias.numel()
        return Fitted(head.eval(), result.num_classes, parameters, score, chosen, result.seconds)


def step_threads(sweep: Sweep) -> int:
    """How many threads suit a sweep; not a matter of timing, so that the same command gives the same result."""
    # Forward and twice that backward, a product and a sum for each parameter.
    operations = 6.0 * sweep.num_parameters * sweep.batch_size * len(sweep.members)
    return 1 if operations < SMALL_STEP else torch.get_num_threads()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
