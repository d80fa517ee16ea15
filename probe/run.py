"""`featcache probe`, as a function: train heads on a cache, score them once on test, keep what came out."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version

import torch

from featcache.probe.attention import mean_attention, save_attention
from featcache.probe.data import SplitData, check_memory, load_split, stream_window
from featcache.probe.fitting import Fitted, Fitter
from featcache.probe.memory import TRAIN, Budget
from featcache.probe.metrics import scores
from featcache.probe.precision import choose_precision
from featcache.probe.process import flush_denormals, return_freed_memory
from featcache.probe.protocol import Protocol, batch_size, get_protocol
from featcache.probe.request import EXACT, Job, ProbeRequest, jobs
from featcache.probe.results import ResultRow, append_row, read_rows, run_id, save_predictions
from featcache.probe.saved import CONFIG_FILE, HeadConfig, describe_parts, features_digest, save_head
from featcache.probe.trainer import predict, prediction_batch
from featcache.store.catalogue import slug
from featcache.store.inventory import SPLITS
from featcache.store.progress import Reporter, Silent
from featcache.store.reading.reader import Cache


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
    """
    flush_denormals()
    wanted = jobs(cache, request)
    request.out.mkdir(parents=True, exist_ok=True)
    runner = _Runner(cache, request, torch.device(device), reporter or Silent())
    for job in wanted:
        runner.check(job)
    rows: list[ResultRow] = []
    for job in wanted:
        rows += runner.run(job)
        return_freed_memory()
    return rows


def _is_kept(request: ProbeRequest, row: ResultRow) -> bool:
    return (request.out / row.folder / CONFIG_FILE).is_file()


def _title(job: Job, seed: int) -> str:
    how = f"exact, {job.penalty}, " if job.solver == EXACT else ""
    return f"{job.head.name} on {job.selection.name}, {job.selection.token_names}, {how}seed {seed}"


class _Runner:
    """Runs jobs one after another and remembers the baseline's scores."""

    def __init__(self, cache: Cache, request: ProbeRequest, device: torch.device, reporter: Reporter) -> None:
        self._cache = cache
        self._request = request
        self._protocol: Protocol = get_protocol(request.protocol)
        self._device = device
        self._precision = choose_precision(request.precision, device)
        self._budget = Budget.of(request.memory, device)
        self._reporter = reporter
        self._baseline: dict[int, float] = {}
        self._earlier = (
            {}
            if request.force
            else {row.run: row for row in read_rows(request.out) if _is_kept(request, row)}
        )

    def check(self, job: Job) -> None:
        """Refuse what cannot be trained before anything is."""
        reader, backbone = self._cache["train"], self._cache.spec.backbone
        with torch.device("meta"):
            job.build(
                job.selection.num_tokens, backbone.width, len(self._cache.inventory.class_names), (0.0,)
            )
        if job.solver != EXACT:
            check_memory(reader, job.selection, batch_size(reader.num_samples, self._protocol), self._budget)

    def run(self, job: Job) -> Iterator[ResultRow]:
        """Train a job with every seed; the first job must be the baseline."""
        data: dict[str, SplitData] = {}
        for seed in self._request.seeds:
            run = self._run_id(job, seed)
            row = self._earlier.get(run)
            if row is not None:
                self._reporter.message(
                    f"{_title(job, seed)}: taken from earlier results (--force trains it again)"
                )
            else:
                data = data or {
                    split: load_split(
                        self._cache, split, job.selection, self._device, self._budget.for_tokens(split)
                    )
                    for split in SPLITS
                }
                row = self._train(job, seed, run, data["train"], data["test"])
            self._baseline.setdefault(seed, row.balanced_accuracy)
            yield row

    def _run_id(self, job: Job, seed: int) -> str:
        return run_id(
            {
                "cache_key": self._cache.key,
                # A partial cache gives other scores than the same cache completed.
                "blocks": len(self._cache.manifest.blocks),
                "head": job.head.name,
                "tokens": [[part.group, part.layers, part.tokens] for part in job.selection.parts],
                "options": job.options,
                "solver": [job.solver, job.penalty] if job.solver == EXACT else [job.solver],
                "precision": self._precision,
                # The order of the rows depends on it.
                "window": stream_window(self._cache["train"], job.selection, self._budget.for_tokens(TRAIN)),
                "protocol": asdict(self._protocol),
                "seed": seed,
                "device": self._device.type,
                "version": version("featcache"),
            }
        )

    def _train(self, job: Job, seed: int, run: str, train: SplitData, test: SplitData) -> ResultRow:
        request = self._request
        memory = self._budget.for_members(train.bytes + test.bytes)
        fitter = Fitter(
            self._protocol, self._device, self._precision, memory, request.out, request.force, self._reporter
        )
        fitted = fitter.fit(job, seed, run, _title(job, seed), train)
        rows = torch.arange(test.tokens.num_samples)
        logits = predict(fitted.head, test.tokens, rows, prediction_batch(test.tokens)).cpu()
        row = self._row(job, seed, run, fitted, logits, train, test)
        self._save(row, job, fitted, logits, test)
        append_row(self._request.out, row)
        return row

    def _row(
        self,
        job: Job,
        seed: int,
        run: str,
        fitted: Fitted,
        logits: torch.Tensor,
        train: SplitData,
        test: SplitData,
    ) -> ResultRow:
        found = scores(logits, torch.from_numpy(test.labels))
        model, dataset = self._names()
        words = (
            dataset,
            model,
            job.head.name,
            job.selection.name,
            job.selection.token_names,
            self._protocol.name if job.solver != EXACT else job.penalty,
        )
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
            seed=seed,
            balanced_accuracy=found.balanced_accuracy,
            top1=found.top1,
            top5=found.top5,
            gain=found.balanced_accuracy - self._baseline.get(seed, found.balanced_accuracy),
            validation_balanced_accuracy=fitted.validation,
            solver=job.solver,
            penalty_kind=job.penalty if job.solver == EXACT else None,
            learning_rate=fitted.chosen.learning_rate,
            weight_decay=fitted.chosen.weight_decay,
            dropout=fitted.chosen.dropout,
            penalty=fitted.chosen.penalty,
            converged=fitted.chosen.converged,
            kept_layers=fitted.chosen.kept_layers,
            parameters=fitted.parameters,
            seconds=round(fitted.seconds, 3),
            train_samples=len(train.labels),
            test_samples=len(test.labels),
            finished_at=round(time.time(), 3),
            version=version("featcache"),
            folder="/".join(("heads", "-".join((*map(slug, words), f"s{seed}", run)))),
        )

    def _save(self, row: ResultRow, job: Job, fitted: Fitted, logits: torch.Tensor, test: SplitData) -> None:
        folder = self._request.out / row.folder
        folder.mkdir(parents=True, exist_ok=True)
        backbone = self._cache.spec.backbone
        class_names = self._cache.inventory.class_names
        config = HeadConfig(
            head=row.head,
            layers=row.layer_names,
            tokens=row.tokens,
            num_tokens=job.selection.num_tokens,
            options=job.options,
            width=backbone.width,
            num_classes=fitted.num_classes,
            class_names=class_names,
            cache_key=row.cache_key,
            architecture=backbone.architecture,
            weights_digest=backbone.weights_digest,
            protocol=row.protocol,
            seed=row.seed,
            parts=describe_parts(job.selection),
            features=features_digest(backbone),
        )
        save_head(folder, fitted.head, config)
        save_predictions(
            folder / "predictions.csv", test.sample_ids, test.labels, logits.softmax(1).numpy(), class_names
        )
        if job.head.has_attention:
            weights = mean_attention(fitted.head, test.tokens, job.selection)
            title = f"{row.dataset}, {row.model}: attention over test images"
            save_attention(folder, weights, job.selection, title)

    def _names(self) -> tuple[str, str]:
        provenance = self._cache.provenance
        names = [provenance.get(f"{what}_names") or [""] for what in ("model", "dataset")]
        folder = self._cache.directory
        return str(names[0][0]) or folder.name, str(names[1][0]) or folder.parent.name
