"""`featcache probe`, as a function: train heads on a cache, score them once on test, keep what came out."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from math import isnan, nan

import numpy as np
import torch

from featcache.devices.precision import training_precision
from featcache.probing.corrections import corrections
from featcache.probing.inputs.data import SplitData, base_stage, check_memory, load_split, stream_window
from featcache.probing.inputs.grouped import groups_of
from featcache.probing.inputs.memory import TRAIN, Budget
from featcache.probing.inputs.split import draw_shots
from featcache.probing.notes import notes
from featcache.probing.protocols.protocol import Protocol, batch_size
from featcache.probing.repetitions import Repetition, requested_repetitions, title_of
from featcache.probing.requests.request import ADAMW, CHOICE, EXACT, HeadJob, ProbeRequest, jobs
from featcache.probing.results.rows import (
    ResultRow,
    append_row,
    read_rows,
    run_id,
)
from featcache.probing.results.saved_head import CONFIG_FILE
from featcache.probing.results.solved_rows import FORMER_HEAD
from featcache.probing.run_output import Scored, folder_of, keep, names_of
from featcache.probing.scoring.bootstrap import score_interval
from featcache.probing.scoring.kinds import REGRESSION, REGRESSION_LOSSES, SINGLE_LABEL
from featcache.probing.scoring.soundness import is_sound
from featcache.probing.scoring.tasks import as_tensor, kind_of, make_task
from featcache.probing.training.fitting import Fitter
from featcache.probing.training.full_batch import Size, check_outputs, check_whole
from featcache.probing.training.process import flush_denormals, return_freed_memory
from featcache.probing.training.trainer import predict, prediction_batch
from featcache.store.errors import DivergedError, RequestError
from featcache.store.files import JsonObject, canonical_json, sha256_hex
from featcache.store.inventory import SPLITS
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import Cache

FEW_SHOTS, FEW_SHOT_FOLDS = 10, 5
"""With fewer samples of each class the choice is by folds, at most so many."""


def probe(
    cache: Cache,
    request: ProbeRequest,
    *,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
) -> list[ResultRow]:
    """Train and score heads on a cache.

    The linear probe on the last layer's class token, over which gains are measured, is trained along. What the
    results hold already, with the same cache and settings, is taken from there. Every row is written as soon as it
    is known.

    Args:
        cache: an open cache with the splits ``train`` and ``test``.
        request: what to train.
        device: where to train.
        reporter: receives messages and progress.

    Returns:
        The baseline's rows first, then those asked for, seed by seed.

    Raises:
        UnknownNameError: a layer or token kind does not exist or is not cached.
        RequestError: the train split is too small, or the memory does not hold what is needed.
        CacheError: the cache is damaged.
        DivergedError: heads diverged; raised after all other heads were trained, with the rows of these.
    """
    flush_denormals()
    wanted = jobs(cache, request)
    request.out.mkdir(parents=True, exist_ok=True)
    reporter = reporter or Silent()
    for note in notes(cache, request):
        reporter.message(f"note: {note}")
    runner = _Runner(cache, request, torch.device(device), reporter)
    for job in wanted:
        runner.check(job)
    rows: list[ResultRow] = []
    for job in wanted:
        rows += runner.run(job)
        return_freed_memory()
    if runner.failures:
        raise DivergedError("\n".join(runner.failures), rows)
    return rows


def _is_kept(request: ProbeRequest, row: ResultRow) -> bool:
    return not row.diverged and (request.out / row.folder / CONFIG_FILE).is_file()


class _Runner:
    """Runs jobs one after another and remembers the baseline's scores."""

    def __init__(self, cache: Cache, request: ProbeRequest, device: torch.device, reporter: Reporter) -> None:
        self._cache = cache
        self._request = request
        self._protocol: Protocol = request.settings()
        self._device = device
        self._precision = training_precision(request.precision, device)
        self._budget = Budget.of(request.memory, device)
        self._kind = request.target_kind or kind_of(cache["train"].labels())
        self._reporter = reporter
        self._baseline: dict[Repetition, float | None] = {}
        self._groups = request.groups
        if self._groups is not None:
            groups_of(cache["train"].sample_ids(), self._groups)
        self.failures: list[str] = []
        """Descriptions of diverged runs, one line each."""
        self._earlier = (
            {}
            if request.force
            else {row.run: row for row in read_rows(request.out) if _is_kept(request, row)}
        )

    def check(self, job: HeadJob) -> None:
        """Refuse what cannot be trained before anything is."""
        reader = self._cache["train"]
        width = job.selection.parts[0].of(reader).width
        num_outputs = len(self._cache.inventory.class_names)
        with torch.device("meta"):
            job.build(job.selection.num_tokens, width, num_outputs, (0.0,))
        if job.solver != CHOICE:
            job.head.check_kind(self._kind)
        if self._request.regression_loss != REGRESSION_LOSSES[0] and self._kind != REGRESSION:
            raise RequestError(
                f"the loss {self._request.regression_loss} is for regression targets, and these are {self._kind}; leave --loss out"
            )
        # Runs with shots use few samples, whatever the size of train.
        num_samples = reader.num_samples if not self._request.shots else 0
        size = Size.of(num_samples, width, num_outputs, self._protocol)
        if num_samples:
            check_whole(job, size, self._device, self._request.memory)
        check_outputs(job, size, self._cache["test"].num_samples, self._request.memory)
        if job.solver in (ADAMW, CHOICE):
            check_memory(reader, job.selection, batch_size(reader.num_samples, self._protocol), self._budget)

    def run(self, job: HeadJob) -> Iterator[ResultRow]:
        """Train a job with every seed, and every draw of every number of shots; the first job must be the baseline."""
        data: dict[str, SplitData] = {}
        for repetition in requested_repetitions(self._request):
            run = self._run_id(job, repetition)
            row = self._earlier.get(run) or self._under_former_name(job, repetition, run)
            if row is not None:
                self._reporter.message(
                    f"{title_of(job, repetition)}: taken from earlier results (--force trains it again)"
                )
            else:
                data = data or {split: self._load(split, job) for split in SPLITS}
                try:
                    row = self._train(
                        job, repetition, run, self._few(data["train"], job, repetition), data["test"]
                    )
                except DivergedError as error:
                    self._reporter.message(f"failed: {error}")
                    self.failures.append(str(error))
                    self._baseline.setdefault(repetition, None)
                    continue
                self._earlier[run] = row
            self._baseline.setdefault(repetition, row.score)
            yield row

    def _load(self, split: str, job: HeadJob) -> SplitData:
        data = load_split(self._cache, split, job.selection, self._device, self._budget.for_tokens(split))
        stage = base_stage(self._cache, job.selection, self._protocol)
        named = self._groups if split == TRAIN else None
        groups = None if named is None else groups_of(data.sample_ids, named)
        return replace(data, tokens=data.tokens.with_stage(stage), groups=groups)

    def _few(self, train: SplitData, job: HeadJob, repetition: Repetition) -> SplitData:
        """The samples that a repetition trains on: nothing else of train is seen, neither in training nor in the choice.

        Raises:
            RequestError: shots of targets that are not single labels.
        """
        if repetition.shots is None:
            return train
        if self._kind != SINGLE_LABEL:
            raise RequestError(
                "shots are samples of every class, which only single-label targets have; leave --shots out"
            )
        counts = np.bincount(train.labels)
        short = int((counts[counts > 0] < repetition.shots).sum())
        if short:
            self._reporter.message(
                f"note: {title_of(job, repetition)}: {short} of {int((counts > 0).sum())} classes have fewer samples; all of theirs are taken"
            )
        return train.subset(draw_shots(train.labels, repetition.shots, repetition.draw))

    def _protocol_of(self, job: HeadJob, repetition: Repetition) -> Protocol:
        """The protocol with the job's input stage; few shots are divided into folds, unless the request says how."""
        protocol = replace(self._protocol, input=job.input or self._protocol.input)
        if repetition.shots is None or repetition.shots >= FEW_SHOTS or self._request.folds is not None:
            return protocol
        return replace(protocol, folds=min(FEW_SHOT_FOLDS, repetition.shots), folds_below=None)

    def _setup(self, job: HeadJob, repetition: Repetition) -> JsonObject:
        """Everything that is asked for, but the repetition."""
        corrected = corrections(job, self._protocol.input, self._kind)
        return {
            **({"corrections": corrected} if corrected else {}),
            **({} if self._groups is None else {"groups": sha256_hex(canonical_json(self._groups))}),
            "cache_key": self._cache.key,
            # A partial cache gives other scores than the same cache completed.
            "blocks": len(self._cache.manifest.blocks),
            "head": job.head.name,
            "tokens": [[part.array, part.layers, part.tokens] for part in job.selection.parts],
            "options": dict(job.options),
            "solver": [job.solver, job.penalty] if job.solver == EXACT else [job.solver],
            "targets": [self._kind, *([self._request.regression_loss] if self._kind == REGRESSION else [])],
            "precision": self._precision,
            "protocol": asdict(self._protocol_of(job, repetition)),
        }

    def _under_former_name(self, job: HeadJob, repetition: Repetition, run: str) -> ResultRow | None:
        """Find a run of the exact solver that an earlier version kept under another name, and keep it under the present one."""
        if job.solver != EXACT:
            return None
        row = self._earlier.get(self._run_id(job, repetition, FORMER_HEAD))
        if row is not None:
            row = replace(row, run=run, setup=self._setup_id(job, repetition))
            append_row(self._request.out, row)
        return row

    def _setup_id(self, job: HeadJob, repetition: Repetition) -> str:
        return run_id({**self._setup(job, repetition), "shots": repetition.shots})

    def _run_id(self, job: HeadJob, repetition: Repetition, head: str | None = None) -> str:
        """Return the id of a run, by default under the present name of the head."""
        return run_id(
            {
                **self._setup(job, repetition),
                "head": head or job.head.name,
                "trial": asdict(repetition),
                # The order of the rows depends on it.
                "window": stream_window(self._cache["train"], job.selection, self._budget.for_tokens(TRAIN)),
                "device": self._device.type,
                "version": version("featcache"),
            }
        )

    def _train(
        self, job: HeadJob, repetition: Repetition, run: str, train: SplitData, test: SplitData
    ) -> ResultRow:
        request = self._request
        fitter = Fitter(
            self._protocol_of(job, repetition),
            self._device,
            self._precision,
            self._budget.for_members(train.bytes + test.bytes),
            request.out,
            request.force,
            self._reporter,
            request.target_kind,
            request.regression_loss,
            request.memory,
        )
        fitted = fitter.fit(job, repetition.seed, run, title_of(job, repetition), train)
        rows = torch.arange(test.tokens.num_samples)
        outputs = predict(fitted.head, test.tokens, rows, prediction_batch(test.tokens, fitted.head)).cpu()
        if not is_sound(outputs, fitted.task.kind):
            raise DivergedError(f"{title_of(job, repetition)}: the outputs of test samples are not finite")
        _, targets = make_task(test.labels, fitted.task.kind)
        report = fitted.task.scores(outputs, as_tensor(targets))
        interval = score_interval(outputs, as_tensor(targets), fitted.task)
        scored = Scored(fitted, outputs, report, interval)
        row = self._row(job, repetition, run, scored, train, test)
        keep(request.out, self._cache, job, row, scored, test)
        append_row(request.out, row)
        return row

    def _row(
        self,
        job: HeadJob,
        repetition: Repetition,
        run: str,
        scored: Scored,
        train: SplitData,
        test: SplitData,
    ) -> ResultRow:
        model, dataset = names_of(self._cache)
        fitted, report = scored.fitted, scored.report
        score, baseline = report.scores[fitted.task.metric], self._baseline.get(repetition, nan)
        if baseline is not None and isnan(baseline):  # this is the baseline
            baseline = score
        protocol = self._protocol_of(job, repetition)
        return ResultRow(
            run=run,
            cache_key=self._cache.key,
            model=model,
            dataset=dataset,
            head=job.head.name,
            layers=job.selection.name,
            layer_names=job.selection.layers,
            tokens=job.selection.kinds,
            num_heads=job.num_heads,
            precision=self._precision,
            protocol=self._protocol.name,
            input=fitted.input,
            seed=repetition.seed,
            shots=repetition.shots,
            draw=repetition.draw,
            folds=protocol.num_folds(len(train.labels)),
            target_kind=fitted.task.kind,
            metric=fitted.task.metric,
            score=score,
            scores=report.scores,
            score_interval=scored.interval,
            balanced_accuracy=report.scores.get("balanced_accuracy"),
            top1=report.scores.get("top1"),
            top5=report.scores.get("top5"),
            gain=None if score is None or baseline is None else score - baseline,
            validation_score=None if isnan(fitted.validation) else fitted.validation,
            chosen_head=fitted.name,
            solver=job.solver,
            penalty_kind=job.penalty if job.solver == EXACT else None,
            **asdict(fitted.chosen),
            parameters=fitted.parameters,
            seconds=round(fitted.seconds, 3),
            train_samples=len(train.labels),
            test_samples=len(test.labels),
            finished_at=round(time.time(), 3),
            version=version("featcache"),
            folder=folder_of(self._cache, job, repetition, self._protocol.name, run),
            setup=self._setup_id(job, repetition),
            options=dict(job.options),
            tap=job.selection.tap,
        )
