"""Labels and records of WebDataset samples: small members of tar files that anybody may have written."""

import io
import json
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.extraction.sources.array_labels import InferredTargets, text_targets
from featcache.extraction.sources.base import Labels
from featcache.extraction.sources.collection import indexed_targets
from featcache.store.class_numbers import number_classes
from featcache.store.errors import DatasetError, RequestError
from featcache.store.npy import read_header
from featcache.store.requests import AUTO
from featcache.store.targets import MAX_CLASSES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Targets
from featcache.store.text import reason

CLASS, ARRAY, RECORD, TEXT = ".cls", ".npy", ".json", ".txt"
_INTEGER = re.compile(rb"\s*[+]?[0-9]{1,30}\s*")


def read_label(content: bytes, suffix: str, where: str) -> Any:
    """Read a label: the index of a class, or the values ``[C]`` of an array.

    Raises:
        DatasetError: the bytes are no such label.
    """
    if suffix == ARRAY:
        array = _array(content, where)
        if array.ndim or array.dtype.kind == "f":
            return array.ravel()
        content = str(int(array.item())).encode()
    label = int(content) if _INTEGER.fullmatch(content) else -1
    if label < 0:
        shown = content[:40].decode("utf-8", "backslashreplace")
        raise DatasetError(f"{where} must be an integer from 0, got {shown!r}")
    if label >= 2**63:
        raise DatasetError(f"{where} must be the index of a class, got {label:,}")
    return label


@dataclass(frozen=True)
class LabelMember:
    """Where the label of a sample stands: in a member of its own, or in a field of its JSON record.

    Raises:
        RequestError: there is no such member.
    """

    name: str | None = None
    """``cls``, ``npy``, or ``json.FIELD``; None for ``.cls``, else ``.npy``. Dots in FIELD lead into objects."""

    def __post_init__(self) -> None:
        if self.name not in (None, CLASS[1:], ARRAY[1:]) and not self.field:
            raise RequestError(
                f"label of wds must be cls, npy, or json.FIELD for a field of the JSON record, got {self.name!r}; other members "
                "are not read"
            )

    @property
    def field(self) -> str:
        """Name of the field in the JSON record; empty if the label is a member of its own."""
        prefix, _, field = (self.name or "").partition(".")
        return field if prefix == RECORD[1:] else ""

    def suffix(self, members: Container[str]) -> str | None:
        """Return the suffix of the member that holds the label, of those that a sample has; None if it has none."""
        choices = [RECORD] if self.field else [f".{self.name}"] if self.name else [CLASS, ARRAY]
        return next((suffix for suffix in choices if suffix in members), None)

    def read(self, content: bytes, suffix: str, where: str) -> Any:
        """Read a label of the content of its member.

        Raises:
            DatasetError: the bytes are no such label, or the record lacks the field.
        """
        if not self.field:
            return read_label(content, suffix, where)
        return read_field(read_record(content, where), self.field, where)


def read_field(record: Mapping[str, Any], name: str, where: str) -> Any:
    """Read a label in a JSON record: the index or name of a class, or a list of numbers.

    Raises:
        DatasetError: there is no such field, or its value is no label.
    """
    value: Any = record
    # A field may have a dot in its name.
    for part in [name] if name in record else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DatasetError(f"{where} has no field {name!r}; it has {', '.join(map(str, record))[:200]}")
        value = value[part]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(item) in (int, float, bool) for item in value):
        return np.array(value, np.float64)
    if type(value) is float:
        return np.array([value])
    if type(value) is bool or (type(value) is int and 0 <= value < 2**63):
        return int(value)
    raise DatasetError(
        f"{where}: field {name!r} is {str(value)[:60]!r}; it must be the index or name of a class, or numbers"
    )


def _array(content: bytes, where: str) -> "np.ndarray[Any, np.dtype[Any]]":
    """Return a small array of numbers; check its size first, since a forged header could take all memory."""
    file = io.BytesIO(content)
    try:
        shape, _, dtype = read_header(file)
    except ValueError as error:
        raise DatasetError(f"{where} is no array of numbers ({reason(error)})") from None
    if dtype.kind not in "biuf":
        raise DatasetError(f"{where} is {dtype}; labels must be numbers")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise DatasetError(f"{where} is no array of numbers (its size is not that of its shape)")
    file.seek(0)
    array: np.ndarray[Any, np.dtype[Any]] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def read_record(content: bytes, where: str) -> Mapping[str, Any]:
    """Read the JSON object of a sample.

    Raises:
        DatasetError: the bytes are no JSON object.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise DatasetError(f"{where} is no JSON object")
    return record


def common_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the fields that all records have."""
    if not records:
        return {}
    names = [name for name in records[0] if all(name in record for record in records)]
    return {name: [record[name] for record in records] for name in names}


def label_targets(labels: Sequence[Any], classes: Sequence[str], target: str, name: str) -> InferredTargets:
    """Return the labels in their stored type and their targets: integers are classes, arrays 0 or 1 for each class or real values.

    Raises:
        DatasetError: arrays differ in size, or do not have the requested target type.
    """
    if any(isinstance(label, str) for label in labels):
        if not all(isinstance(label, str) for label in labels):
            raise DatasetError(f"{name}: some labels are texts and others numbers; they must agree")
        return text_targets(labels, target, classes, name)
    if not any(isinstance(label, np.ndarray) for label in labels):
        column = np.array(labels, np.int64)
        if target == REGRESSION:
            named = tuple(classes[:1]) or ("target",)
            return InferredTargets(column[:, None].astype(np.float32), Targets(REGRESSION, named))
        return _class_targets(column, classes, name)
    arrays = [np.asarray(label).ravel() for label in labels]
    if len({len(array) for array in arrays}) > 1:
        raise DatasetError(
            f"{name}: labels are arrays of {min(map(len, arrays))} to {max(map(len, arrays))} values; they must agree"
        )
    table = np.stack(arrays)
    names = (*classes[: table.shape[1]], *(str(index) for index in range(len(classes), table.shape[1])))
    if target != REGRESSION and np.isin(table, (0, 1)).all():
        return InferredTargets(table.astype(np.uint8), Targets(MULTI_LABEL, names))
    if target in (MULTI_LABEL, SINGLE_LABEL):
        raise DatasetError(
            f"{name}: labels are arrays with other values than 0 and 1, so they are not {target}"
        )
    about = (
        f"{name}: labels are not all 0 or 1, so they are real values; for classes save their indices as .cls"
    )
    return InferredTargets(
        table.astype(np.float32), Targets(REGRESSION, names), [about] if target == AUTO else []
    )


def _class_targets(labels: Labels, classes: Sequence[str], name: str) -> InferredTargets:
    """Return classes by their indices ``[N]``; without names, ids in place of indices are renumbered."""
    if not classes and labels.max(initial=0) >= MAX_CLASSES:
        numbered = number_classes([labels], name)
        notes = [f"{name}: {note}" for note in numbered.notes]
        return InferredTargets(numbered.labels[0], Targets(SINGLE_LABEL, numbered.names), notes)
    targets = indexed_targets(labels, classes, name)
    notes = []
    if classes and len(classes) < len(targets.names):
        notes.append(
            f"{name}: {len(classes)} names for {len(targets.names)} classes; classes from {len(classes)} on are called by "
            "their numbers"
        )
    return InferredTargets(labels, targets, notes)
