"""The output of a run in the results: the folder of its head, and the files in it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from featcache.probing.attention import mean_attention, save_attention
from featcache.probing.heads import get_head
from featcache.probing.inputs.data import SplitData
from featcache.probing.repetitions import Repetition
from featcache.probing.requests.request import EXACT, HeadJob
from featcache.probing.results.predictions import PREDICTIONS_FILE, save_predictions
from featcache.probing.results.records import save_curve, save_sweep
from featcache.probing.results.rows import ResultRow, save_candidates, save_scores
from featcache.probing.results.saved_head import HeadConfig, describe_parts, features_digest, save_head
from featcache.probing.scoring.kinds import SINGLE_LABEL
from featcache.probing.scoring.metrics import Report
from featcache.probing.training.fitted import FittedHead
from featcache.store.catalogue import slug
from featcache.store.reading.reader import Cache
from featcache.store.text import encodable


@dataclass(frozen=True)
class Scored:
    """A fitted head and its outputs on test."""

    fitted: FittedHead
    outputs: torch.Tensor
    """``[N, O]``."""
    report: Report
    interval: tuple[float, float] | None
    """Bootstrap interval of the score."""


def names_of(cache: Cache) -> tuple[str, str]:
    """Return the model and dataset of a cache, for titles."""
    names = [cache.provenance.get(f"{what}_names") or [""] for what in ("model", "dataset")]
    folder = cache.directory
    return encodable(str(names[0][0]) or folder.name), encodable(str(names[1][0]) or folder.parent.name)


def folder_of(cache: Cache, job: HeadJob, repetition: Repetition, protocol: str, run: str) -> str:
    """Return the folder of a head, relative to the results."""
    few = [] if repetition.shots is None else [f"shots{repetition.shots}", f"draw{repetition.draw}"]
    model, dataset = names_of(cache)
    words = (
        dataset,
        model,
        job.head.name,
        job.selection.name,
        job.selection.token_names,
        protocol if job.solver != EXACT else job.penalty,
        *few,
    )
    return "/".join(("heads", "-".join((*map(slug, words), f"s{repetition.seed}", run))))


def config_of(cache: Cache, job: HeadJob, row: ResultRow, fitted: FittedHead, width: int) -> HeadConfig:
    """Return the metadata of a saved head."""
    backbone = cache.spec.backbone
    return HeadConfig(
        head=fitted.name,
        layers=row.layer_names,
        tokens=row.tokens,
        num_tokens=job.selection.num_tokens,
        options=fitted.head.options,
        input=fitted.input,
        target_kind=row.target_kind,
        width=width,
        num_classes=fitted.num_classes,
        class_names=cache.inventory.class_names,
        cache_key=row.cache_key,
        architecture=backbone.architecture,
        weights_digest=backbone.weights_digest,
        protocol=row.protocol,
        seed=row.seed,
        parts=describe_parts(job.selection),
        features=features_digest(backbone),
    )


def keep(out: Path, cache: Cache, job: HeadJob, row: ResultRow, scored: Scored, test: SplitData) -> None:
    """Write the head of a row, its predictions, scores, sweep, losses and attention into the row's folder."""
    folder, fitted = out / row.folder, scored.fitted
    folder.mkdir(parents=True, exist_ok=True)
    class_names = cache.inventory.class_names
    save_head(folder, fitted.head, config_of(cache, job, row, fitted, test.tokens.width))
    save_predictions(
        folder / PREDICTIONS_FILE,
        test.sample_ids,
        test.labels,
        fitted.task.probabilities(scored.outputs).numpy(),
        class_names,
        row.target_kind,
        # Use the logits, since probabilities near 1 tie where logits do not.
        predicted=scored.outputs.argmax(1).numpy(),
    )
    save_scores(folder, scored.report)
    if fitted.sweep is not None:
        save_sweep(folder, fitted.sweep)
    if fitted.candidates:
        save_candidates(folder, fitted.candidates)
    if fitted.head.losses is not None:
        save_curve(folder, fitted.head.losses.tolist())
    if get_head(fitted.name).has_attention:
        labels = test.labels if row.target_kind == SINGLE_LABEL else None
        record = mean_attention(fitted.head, test.tokens, job.selection, labels, class_names)
        save_attention(folder, record, f"{row.dataset}, {row.model}: attention over test images")
