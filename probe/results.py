"""Results on disk: one row per probe run in ``results.jsonl``, one folder per trained head. Never inside a cache."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featcache.store.files import JsonObject, canonical_json, sha256_hex, write_atomic

RESULTS_FILE = "results.jsonl"
PREDICTIONS_FILE = "predictions.csv"


@dataclass(frozen=True)
class Chosen:
    """What was chosen on the held-out part; which fields are given depends on the solver."""

    learning_rate: float | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    penalty: float | None = None
    converged: bool | None = None
    kept_layers: Sequence[str] | None = None


@dataclass(frozen=True)
class ResultRow:
    """The outcome of one head, selection, protocol and seed on one cache. Scores are fractions."""

    run: str
    """Digest of everything that determines the outcome; see `run_id`."""
    cache_key: str
    model: str
    dataset: str
    head: str
    layers: str
    """Layer set or list, as asked."""
    layer_names: Sequence[str]
    tokens: Sequence[str]
    """Token kinds, such as ``cls`` or ``patches``."""
    num_heads: int | None
    """Of a head with attention."""
    precision: str
    """Of matrix products."""
    protocol: str
    seed: int
    balanced_accuracy: float
    top1: float
    top5: float | None
    gain: float
    """Balanced accuracy over that of the linear probe on the last layer's class token."""
    validation_balanced_accuracy: float
    solver: str
    """``adamw`` or ``exact``; which of the following fields are given depends on it."""
    learning_rate: float | None
    weight_decay: float | None
    dropout: float | None
    penalty_kind: str | None
    penalty: float | None
    converged: bool | None
    kept_layers: Sequence[str] | None
    """Those that a group lasso left with weight."""
    parameters: int
    seconds: float
    train_samples: int
    test_samples: int
    finished_at: float
    """Seconds since the epoch."""
    version: str
    """Of featcache."""
    folder: str
    """Folder of the trained head, relative to the results."""

    def to_dict(self) -> JsonObject:
        """Return the row as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self | None:
        """Read a row back; None for a row of another version's fields."""
        if document.keys() != cls.__dataclass_fields__.keys():
            return None
        return cls(**document)


def run_id(settings: Mapping[str, Any]) -> str:
    """Return 12 hex digits that stand for everything that determines an outcome."""
    return sha256_hex(canonical_json(settings))[:12]


def append_row(out: Path, row: ResultRow) -> None:
    """Append a row to results.jsonl, durably and in one write."""
    path = out / RESULTS_FILE
    line = json.dumps(row.to_dict(), ensure_ascii=False).encode() + b"\n"
    with path.open("ab+") as file:
        # A line that a killed run left half-written must not swallow this one.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_rows(out: Path) -> list[ResultRow]:
    """All rows of results.jsonl; lines that are torn or of another version are passed over."""
    try:
        lines = (out / RESULTS_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            document = json.loads(line)
        except ValueError:
            continue
        row = ResultRow.from_dict(document) if isinstance(document, dict) else None
        if row is not None:
            rows.append(row)
    return rows


def save_predictions(
    path: Path,
    sample_ids: Sequence[str],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    class_names: Sequence[str],
) -> None:
    """Write a CSV of test predictions: sample id, label, prediction and its probability.

    Args:
        path: the file.
        sample_ids: N ids.
        labels: ``[N]``.
        probabilities: ``[N, C]``.
        class_names: names in label order.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("sample_id", "label", "predicted", "probability", "label_name", "predicted_name"))
    predicted = probabilities.argmax(1)
    for sample_id, label, guess, row in zip(sample_ids, labels, predicted, probabilities, strict=True):
        writer.writerow(
            (sample_id, label, guess, f"{row[guess]:.6f}", class_names[label], class_names[guess])
        )
    write_atomic(path, buffer.getvalue().encode())
