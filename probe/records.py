"""What is kept of a run beside its head, for plots and for people: the losses of the final fit, attention; and the sweep as it was written. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.probe.results import VALIDATION_FILE, ResultRow
from featcache.store.errors import CacheError
from featcache.store.files import (
    MAX_DOCUMENT_BYTES,
    JsonObject,
    field,
    parse_json,
    read_json,
    write_atomic,
)
from featcache.store.plain import open_plain

CURVE_FILE = "curve.json"
ATTENTION_FILE = "attention.json"
MAX_CURVE_POINTS = 200
"""Losses are averaged over as many updates as keeps a curve below this."""


@dataclass(frozen=True)
class Trial:
    """One member of a sweep, or one penalty of a path."""

    settings: Mapping[str, float | str]
    """Such as learning_rate, weight_decay and dropout; or head and input."""
    validation: float
    """Its score on the held-out samples."""


@dataclass(frozen=True)
class SweepRecord:
    """All that a sweep tried."""

    score: str
    """Name of the score that it chose by."""
    trials: Sequence[Trial]
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


def read_sweep(folder: Path, row: ResultRow) -> SweepRecord | None:
    """Read what validation compared; None if nothing was chosen, or the run has no such file.

    Raises:
        CacheError: it is damaged.
    """
    path = folder / VALIDATION_FILE
    try:
        descriptor, size = open_plain(path)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        # An array is not a document of ours; it becomes one.
        document = parse_json(b'{"trials":' + file.read(min(size, MAX_DOCUMENT_BYTES)) + b"}", str(path))
    trials = []
    for found in field(document, "trials", list, str(path)):
        if not isinstance(found, dict) or "score" not in found:
            raise CacheError(f"{path}: a trial has no score")
        settings = {name: value for name, value in found.items() if name != "score"}
        trials.append(Trial(settings, _nan(found["score"])))
    if not trials:
        return None
    return SweepRecord(row.metric, trials, _chosen(trials, row))


def _chosen(trials: Sequence[Trial], row: ResultRow) -> int:
    """The trial that the row's settings are those of; the best where the row does not tell, as of an average."""
    known = {**vars(row), **(row.settings or {}), "head": row.chosen_head}
    for index, trial in enumerate(trials):
        if all(known.get(name) == value for name, value in trial.settings.items()):
            return index
    return int(np.nanargmax([trial.validation for trial in trials]))


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
    """Read updates and losses back; None if the head was not trained. Errors as in `read_sweep`."""
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
    write_atomic(path, json.dumps(document, ensure_ascii=False).encode() + b"\n")


def _read(path: Path) -> tuple[JsonObject | None, str]:
    try:
        return read_json(path), str(path)
    except FileNotFoundError:
        return None, str(path)


def _listed(values: npt.NDArray[np.float64]) -> list[Any]:
    """Nested lists with null for NaN."""
    rounded = np.round(values, 6).astype(object)
    rounded[np.isnan(values)] = None
    listed: list[Any] = rounded.tolist()
    return listed


def _number(value: float) -> float | None:
    """JSON has no NaN: a training that diverged has no loss."""
    return float(value) if np.isfinite(value) else None


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
