"""What is kept of a run beside its head, for plots and for people: the sweep, the losses of the final fit, attention. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field, finite_or_null, read_json, write_atomic

SWEEP_FILE = "sweep.json"
CURVE_FILE = "curve.json"
ATTENTION_FILE = "attention.json"
MAX_CURVE_POINTS = 200
"""Losses are averaged over as many updates as keeps a curve below this."""


@dataclass(frozen=True)
class SweepTrial:
    """One member of a sweep, or one penalty of a path."""

    settings: Mapping[str, float]
    """Such as learning_rate, weight_decay and dropout."""
    validation: float
    """Its score on the held-out samples."""


@dataclass(frozen=True)
class SweepRecord:
    """All that a sweep tried."""

    score: str
    """Name of the score that it chose by."""
    trials: Sequence[SweepTrial]
    chosen: int
    """Index of the one that was chosen."""


@dataclass(frozen=True)
class AttentionRecord:
    """Where attention went on the test split."""

    layers: Sequence[str]
    tokens: Sequence[str]
    weights: npt.NDArray[np.float64]
    """``[L, K]``; NaN where a layer has no such token."""
    class_names: Sequence[str]
    by_class: npt.NDArray[np.float64] | None
    """``[C, L, K]``; NaN for a class without images. None where samples have no single class."""


def save_sweep(folder: Path, record: SweepRecord) -> None:
    """Write sweep.json."""
    trials = [{**trial.settings, "validation": _number(trial.validation)} for trial in record.trials]
    _write(folder / SWEEP_FILE, {"score": record.score, "chosen": record.chosen, "trials": trials})


def read_sweep(folder: Path) -> SweepRecord | None:
    """Read it back; None if the run has none.

    Raises:
        CacheError: it is damaged.
    """
    document, where = _read(folder / SWEEP_FILE)
    if document is None:
        return None
    trials = []
    for row in field(document, "trials", list, where):
        settings = {name: float(value) for name, value in row.items() if name != "validation"}
        trials.append(SweepTrial(settings, _nan(row["validation"])))
    chosen = field(document, "chosen", int, where)
    if not 0 <= chosen < len(trials):
        raise CacheError(f"{where}: field 'chosen' is none of the trials")
    return SweepRecord(field(document, "score", str, where), trials, chosen)


def save_curve(folder: Path, losses: Sequence[float]) -> None:
    """Write curve.json: the loss of every update, averaged over stretches of equal length."""
    if not losses:
        return
    length = -(-len(losses) // MAX_CURVE_POINTS)
    ends = list(range(length, len(losses) + 1, length))
    if ends[-1:] != [len(losses)]:
        ends.append(len(losses))
    starts = [0, *ends[:-1]]
    means = [float(np.mean(losses[start:end])) for start, end in zip(starts, ends, strict=True)]
    _write(folder / CURVE_FILE, {"updates": ends, "loss": [_number(mean) for mean in means]})


def read_curve(folder: Path) -> tuple[list[int], list[float]] | None:
    """Read updates and losses back; None if the run has none. Errors as in `read_sweep`."""
    document, where = _read(folder / CURVE_FILE)
    if document is None:
        return None
    updates, losses = (field(document, name, list, where) for name in ("updates", "loss"))
    return updates, [_nan(loss) for loss in losses]


def save_attention_record(folder: Path, record: AttentionRecord) -> None:
    """Write attention.json."""
    document = {
        "layers": list(record.layers),
        "tokens": list(record.tokens),
        "weights": _listed(record.weights),
    }
    if record.by_class is not None:
        document |= {"class_names": list(record.class_names), "by_class": _listed(record.by_class)}
    _write(folder / ATTENTION_FILE, document)


def read_attention(folder: Path) -> AttentionRecord | None:
    """Read it back; None if the head has no attention. Errors as in `read_sweep`."""
    document, where = _read(folder / ATTENTION_FILE)
    if document is None:
        return None
    by_class = document.get("by_class")
    return AttentionRecord(
        layers=field(document, "layers", list, where),
        tokens=field(document, "tokens", list, where),
        weights=np.array(field(document, "weights", list, where), np.float64),
        class_names=document.get("class_names", []),
        by_class=None if by_class is None else np.array(by_class, np.float64),
    )


def _write(path: Path, document: JsonObject) -> None:
    text = json.dumps(finite_or_null(document), ensure_ascii=False, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")


def _read(path: Path) -> tuple[JsonObject | None, str]:
    try:
        return read_json(path), str(path)
    except FileNotFoundError:
        return None, str(path)


def _listed(values: npt.NDArray[np.float64]) -> list[Any]:
    """Return nested lists with nine significant digits, all that a float32 has, and null for NaN."""
    rounded = [float(f"{value:.9g}") if np.isfinite(value) else None for value in values.flat]
    listed: list[Any] = np.array(rounded, object).reshape(values.shape).tolist()
    return listed


def _number(value: float) -> float | None:
    """JSON has no NaN: a training that diverged has no loss."""
    return float(value) if np.isfinite(value) else None


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
