"""Write predictions.csv, the test predictions of a head in full precision, and read it for plots. No torch."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from featcache.probing.scoring.kinds import SINGLE_LABEL
from featcache.store.errors import CacheError
from featcache.store.files import write_atomic
from featcache.store.regular_files import open_regular

PREDICTIONS_FILE = "predictions.csv"
LABEL, PREDICTED, PROBABILITY = "label", "predicted", "probability"
SINGLE_COLUMNS = ("sample_id", LABEL, PREDICTED, PROBABILITY, "label_name", "predicted_name")
"""Columns for single labels."""


def save_predictions(
    path: Path,
    sample_ids: Sequence[str],
    labels: npt.NDArray[Any],
    outputs: npt.NDArray[np.float32],
    names: Sequence[str],
    kind: str = SINGLE_LABEL,
    predicted: npt.NDArray[np.int64] | None = None,
) -> None:
    """Write a CSV of test predictions; numbers have all their digits, and empty cells stand for numbers that are not finite.

    Single labels give sample id, label, prediction and its probability. Other targets give the sample id and, for every class or
    quantity, the target and the prediction (a probability, or a number in the target's unit).

    Args:
        path: the file.
        sample_ids: N ids.
        labels: ``[N]``, or targets ``[N, O]``.
        outputs: probabilities ``[N, C]``, or numbers ``[N, O]``.
        names: names of classes, in label order, or of quantities.
        kind: target type.
        predicted: the predicted class of single labels ``[N]``; by default the most probable one, ties to the lowest index.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows = zip(sample_ids, labels, outputs, strict=True)
    predicted = outputs.argmax(1) if predicted is None else predicted
    if kind == SINGLE_LABEL:
        writer.writerow(SINGLE_COLUMNS)
        for (sample_id, label, row), guess in zip(rows, predicted.tolist(), strict=True):
            writer.writerow((sample_id, label, guess, shortest(row[guess]), names[label], names[guess]))
    else:
        named = [names[index] if index < len(names) else str(index) for index in range(outputs.shape[1])]
        writer.writerow(_distinct(("sample_id", *named, *(f"predicted {name}" for name in named))))
        for sample_id, target, row in rows:
            writer.writerow((sample_id, *map(shortest, np.atleast_1d(target)), *map(shortest, row)))
    write_atomic(path, buffer.getvalue().encode())


def _distinct(header: Sequence[str]) -> list[str]:
    """Return a header with unique columns; a repeated name gets a number, as in pandas."""
    found: dict[str, None] = {}
    asked = set(header)
    for name in header:
        numbered = (f"{name}.{number}" for number in count(1))
        free = (one for one in numbered if one not in found and one not in asked)
        found[next(free) if name in found else name] = None
    return list(found)


def shortest(value: np.number[Any] | float) -> str:
    """Return the shortest text that reads back as the same number in the same type; empty for NaN and infinities."""
    # numpy's text of a float32 has just enough digits; formats such as ``:g`` have too few, and Python's repr those of the float64.
    return str(value).removesuffix(".0") if np.isfinite(value) else ""


@contextmanager
def _opened(path: Path) -> Iterator[TextIO | None]:
    """Open a file of predictions to read it in the block; None if it does not exist.

    Raises:
        CacheError: what the block reads is damaged.
    """
    try:
        descriptor, _ = open_regular(path)
    except FileNotFoundError:
        yield None
        return
    with open(descriptor, encoding="utf-8", newline="") as file:
        try:
            yield file
        except (ValueError, csv.Error) as error:
            raise CacheError(f"{path} is damaged ({error}); train the head again with --force") from None


@dataclass(frozen=True)
class TestPredictions:
    """Labels and predictions of test samples, of single labels."""

    sample_ids: tuple[str, ...]
    labels: tuple[str, ...]
    """Label of every sample, a class index as text."""
    right: npt.NDArray[np.bool_]
    """``[N]``, whether the prediction is the label."""


def read_predictions(path: Path) -> TestPredictions | None:
    """Read the test predictions of a head; None if the file does not exist, or has no single labels.

    Raises:
        CacheError: the file is damaged.
    """
    with _opened(path) as file:
        if file is None:
            return None
        reader = csv.DictReader(file)
        if not {LABEL, PREDICTED, PROBABILITY} <= {*(reader.fieldnames or ())} <= {*SINGLE_COLUMNS}:
            return None
        lines = [(row[SINGLE_COLUMNS[0]], row[LABEL], row[PREDICTED]) for row in reader]
    ids, labels, predicted = zip(*lines, strict=True) if lines else ((), (), ())
    return TestPredictions(
        ids, labels, np.array([a == b for a, b in zip(labels, predicted, strict=True)], bool)
    )


@dataclass(frozen=True)
class NumberPredictions:
    """Targets and predictions of test samples, of real values."""

    sample_ids: tuple[str, ...]
    targets: npt.NDArray[np.float64]
    """``[N, O]``."""
    predicted: npt.NDArray[np.float64]
    """``[N, O]``; NaN where a prediction is not finite."""


def read_numbers(path: Path) -> NumberPredictions | None:
    """Read the test predictions of a head for real values; None if the file does not exist, or has single labels.

    Raises:
        CacheError: the file is damaged.
    """
    with _opened(path) as file:
        if file is None:
            return None
        header, *rows = csv.reader(file)
        if {LABEL, PREDICTED, PROBABILITY} <= {*header} <= {*SINGLE_COLUMNS} or len(header) % 2 == 0:
            return None
        values = np.array([[float(text or "nan") for text in row[1:]] for row in rows])
        targets, predicted = np.split(values.reshape(len(rows), -1), 2, axis=1)
    return NumberPredictions(tuple(row[0] for row in rows), targets, predicted)


def read_confidences(path: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Read the probability ``[N]`` of every prediction (NaN where there is none), and whether it is right.

    Both are empty if the file does not exist, or has no single labels.

    Raises:
        CacheError: the file is damaged.
    """
    with _opened(path) as file:
        if file is None:
            return np.empty(0), np.empty(0, bool)
        reader = csv.DictReader(file)
        columns = {*(reader.fieldnames or ())}
        # Label sets may have classes named like these columns, but then there are more columns.
        single = {LABEL, PREDICTED, PROBABILITY} <= columns <= {*SINGLE_COLUMNS}
        lines = [(row[PROBABILITY], row[LABEL], row[PREDICTED]) for row in reader] if single else []
        probability = np.array([float(text or "nan") for text, *_ in lines])
    return probability, np.array([label == guess for _, label, guess in lines], bool)
