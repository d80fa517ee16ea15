"""Labels in arrays and lists: numbers, texts, or columns of these; a note says so where their target type is a guess."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.base import Labels
from featcache.extraction.sources.class_values import unify_classes
from featcache.extraction.sources.collection import NO_TARGETS, class_labels, no_labels
from featcache.store.class_numbers import MAX_LABEL, number_classes
from featcache.store.errors import DatasetError
from featcache.store.targets import (
    MAX_UNUSED_CLASSES,
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Targets,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InferredTargets:
    """Labels and their targets."""

    labels: Labels
    """``[N, ...]`` in the stored type of `targets`."""
    targets: Targets
    notes: list[str] = field(default_factory=list)


def unlabeled_targets(num_samples: int, notes: Sequence[str] = ()) -> InferredTargets:
    """Return the targets of N samples without labels."""
    return InferredTargets(no_labels(num_samples), NO_TARGETS, list(notes))


def array_targets(columns: Sequence[Array], target: str, names: Sequence[str], where: str) -> InferredTargets:
    """Infer the targets of all parts: integers and texts are classes, columns of 0 and 1 label sets, other numbers real values.

    Args:
        columns: labels of every part, ``[N]`` or ``[N, C]``; further axes must have one entry.
        target: target type, or ``auto``.
        names: names of the classes or quantities, as far as known.
        where: name of the dataset in errors.

    Raises:
        DatasetError: the labels cannot be targets of this type.
    """
    parts = [_as_columns(np.asarray(column), where) for column in columns]
    if len({part.shape[1] for part in parts}) > 1:
        raise DatasetError(f"{where}: labels of the splits differ in their number of columns")
    if not sum(map(len, parts)):
        raise DatasetError(f"{where} holds no samples")
    if any(part.dtype.kind in "SUO" for part in parts):
        return _class_name_targets(parts, target, names, where)
    table = _concatenate(parts, where)
    target_type = target if target != "auto" else _infer_target_type(table)
    notes = _inference_notes(table, where) if target == "auto" else []
    if target_type == REGRESSION:
        with np.errstate(over="ignore"):  # values beyond the range become infinite, and are refused as such
            return InferredTargets(
                table.astype(np.float32), Targets(target_type, _names(names, table.shape[1])), notes
            )
    _require_indices(table, target_type, where)
    if target_type == MULTI_LABEL:
        if table.max() > 1:
            raise DatasetError(f"{where}: labels are not 0 or 1, so they are not {target_type}")
        return InferredTargets(
            table.astype(np.uint8), Targets(target_type, _names(names, table.shape[1])), notes
        )
    if table.shape[1] != 1:
        raise DatasetError(f"{where}: labels have {table.shape[1]} columns, so they are not {target_type}")
    return _class_index_targets(table[:, 0].astype(np.int64), names, where, notes)


def _as_columns(column: Array, where: str) -> Array:
    """Return the labels as ``[N, C]``; PCAM has ``[N, 1, 1, 1]``, MedMNIST ``[N, 1]``."""
    if not column.ndim or (column.ndim > 2 and prod(column.shape[1:]) > 1) or prod(column.shape[1:]) == 0:
        raise DatasetError(
            f"{where}: labels are {list(column.shape)}; there must be one for each image, [N] or [N, C]"
        )
    return column.reshape(len(column), prod(column.shape[1:]))


def _concatenate(parts: Sequence[Array], where: str) -> Array:
    """Return the numbers of all parts, ``[N, C]``; integers stay integers, even if the parts have different integer types."""
    for part in parts:
        if part.dtype.kind not in "biuf":
            raise DatasetError(f"{where}: labels are {part.dtype}; they must be numbers or texts")
    if any(part.dtype.kind == "f" for part in parts):
        return np.concatenate(parts)
    largest = max(int(part.max()) for part in parts if len(part))
    if largest > MAX_LABEL:
        raise DatasetError(f"{where}: label {largest} is larger than any index of a class")
    return np.concatenate([part.astype(np.int64) for part in parts])


def _require_indices(table: Array, target_type: str, where: str) -> None:
    whole = table.dtype.kind != "f" or bool(np.isfinite(table).all() and (table == np.floor(table)).all())
    if not whole or table.min() < 0:
        smallest = f" (there is {table.min():g})" if whole else ""
        raise DatasetError(
            f"{where}: labels are not integers from 0{smallest}, so they are not {target_type} (--target regression)"
        )
    if table.max() > MAX_LABEL:
        raise DatasetError(f"{where}: label {table.max():g} is larger than any index of a class")


def _class_index_targets(
    labels: Labels, names: Sequence[str], where: str, notes: list[str]
) -> InferredTargets:
    largest = int(labels.max())
    if not names:
        numbered = number_classes([labels], where)
        if numbered.labels[0] is not labels:  # empty classes are reported for every dataset elsewhere
            notes = [*notes, *(f"{where}: {note}" for note in numbered.notes)]
        return InferredTargets(numbered.labels[0], Targets(SINGLE_LABEL, numbered.names), notes)
    if largest >= len(names) + MAX_UNUSED_CLASSES:
        raise DatasetError(f"{where}: label {largest}, but there are {len(names)} class names")
    if largest >= len(names):
        notes.append(
            f"{where}: labels go up to {largest}, and there are {len(names)} class names; the other classes are called by "
            "their numbers"
        )
    return InferredTargets(labels, Targets(SINGLE_LABEL, _names(names, max(len(names), largest + 1))), notes)


def _class_name_targets(
    parts: Sequence[Array], target: str, names: Sequence[str], where: str
) -> InferredTargets:
    if any(part.shape[1] != 1 for part in parts):
        raise DatasetError(f"{where}: labels are columns of texts; name one column of them")
    values = [
        label_text(value, row, where)
        for row, value in enumerate(value for part in parts for value in part[:, 0].tolist())
    ]
    return text_targets(values, target, names, where)


def text_targets(values: Sequence[str], target: str, names: Sequence[str], where: str) -> InferredTargets:
    """Return classes given by their names ``[N]``, in the order of `names`, or sorted.

    Raises:
        DatasetError: another target type is requested, or a class is not among the names.
    """
    if target not in ("auto", SINGLE_LABEL):
        raise DatasetError(f"{where}: labels are texts, so they are not {target}")
    if names:
        index = {name: label for label, name in enumerate(names)}
        unknown = next((value for value in values if value not in index), None)
        if unknown is not None:
            raise DatasetError(
                f"{where}: label {ascii(unknown)[:80]} is not among the {len(names)} class names"
            )
        return InferredTargets(
            np.array([index[value] for value in values], np.int64), Targets(SINGLE_LABEL, tuple(names))
        )
    unified, notes = unify_classes(values, where)
    labels, class_names = class_labels(unified)
    return InferredTargets(labels, Targets(SINGLE_LABEL, class_names), notes)


def label_text(value: Any, row: int, where: str) -> str:
    """Return one label as text.

    Raises:
        DatasetError: the label is not text, or not UTF-8.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise DatasetError(f"{where}: the label of row {row} is {type(value).__name__}, which is no text")
        text.encode()
    except UnicodeError:
        raise DatasetError(
            f"{where}: the label of row {row} is not UTF-8 ({ascii(value)[:60]}); write it as UTF-8"
        ) from None
    return text


def _inference_notes(table: Array, where: str) -> list[str]:
    """Return the note on targets that were inferred from the type of the labels."""
    if table.dtype.kind == "f":
        if bool(np.isfinite(table).all() and (table == np.floor(table)).all()):
            return [
                f"{where}: labels are {table.dtype} and all whole numbers; they are read as real values (regression), and as "
                "classes with --target single-label"
            ]
        return [f"{where}: labels are {table.dtype} and read as real values (regression)"]
    one_of_each = table.shape[1] > 1 and bool((table.sum(1) == 1).all()) and table.max() == 1
    if one_of_each:
        return [
            f"{where}: labels have {table.shape[1]} columns and a single 1 in every row; they are read as several classes "
            "(multi-label)"
        ]
    return []


def _infer_target_type(table: Array) -> str:
    if table.dtype.kind == "f":
        return REGRESSION
    return SINGLE_LABEL if table.shape[1] == 1 else MULTI_LABEL


def _names(names: Sequence[str], count: int) -> tuple[str, ...]:
    return (*names[:count], *(str(index) for index in range(len(names), count)))
