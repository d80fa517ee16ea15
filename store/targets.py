"""Targets of a dataset: one class a sample, several, real values, or none; and how ``label`` stores them.

| kind | ``label`` | ``names`` |
|---|---|---|
| single-label | int64 ``[N]``, index of the class | the C classes |
| multi-label | uint8 ``[N, C]``, 1 where the class is there | the C classes |
| regression | float32 ``[N, T]`` | the T quantities, with their `units` |
| none | there is no ``label`` | none |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field, text_list
from featcache.store.text import is_utf8

SINGLE_LABEL, MULTI_LABEL, REGRESSION, UNLABELED = "single-label", "multi-label", "regression", "none"
TARGET_KINDS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, UNLABELED)
MAX_CLASSES = 2**20
"""Largest number of classes of a new cache; their names go into the manifest, whose size is limited."""
MAX_NAMES_BYTES = 2**24
MAX_UNUSED_CLASSES = 4096
"""Largest number of classes without a sample that are named because a larger label occurs."""
_DTYPES = {SINGLE_LABEL: "int64", MULTI_LABEL: "uint8", REGRESSION: "float32"}
_AXES = {SINGLE_LABEL: (), MULTI_LABEL: ("class",), REGRESSION: ("target",)}


@dataclass(frozen=True)
class Targets:
    """Kind, names and units of the targets of a dataset.

    Raises:
        ValueError: there is no such kind, or the units do not go with the names.
    """

    type: str
    """One of `TARGET_KINDS`."""
    names: tuple[str, ...]
    """Names of the classes, in label order, or of the quantities."""
    units: tuple[str, ...] = ()
    """Unit of every quantity, empty where there is none or it is not known; of regression targets alone."""

    def __post_init__(self) -> None:
        if self.type not in TARGET_KINDS:
            raise ValueError(f"kind must be one of {', '.join(TARGET_KINDS)}, got {self.type!r}")
        if self.units and (self.type != REGRESSION or len(self.units) != len(self.names)):
            raise ValueError(f"there are {len(self.units)} units for {len(self.names)} names, {self.type}")
        if self.names and not self.labeled:
            raise ValueError(f"there are {len(self.names)} names, {self.type}")

    @property
    def labeled(self) -> bool:
        """Whether samples have labels, so that there is an array ``label``."""
        return self.type != UNLABELED

    @property
    def dtype(self) -> str:
        """Value type of the stored labels."""
        return _DTYPES[self.type]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the label of one sample."""
        return () if self.type == SINGLE_LABEL else (len(self.names),)

    @property
    def dimension_names(self) -> tuple[str, ...]:
        """Names of the axes behind that of the samples."""
        return _AXES[self.type]

    def mismatch(
        self, labels: npt.NDArray[Any], valid: npt.NDArray[np.bool_], first_row: int = 0
    ) -> str | None:
        """Return why labels ``[N, ...]`` cannot be; None if those of all rows that hold features can.

        Args:
            labels: as they are stored.
            valid: which rows hold features, ``[N]``; the labels of others mean nothing.
            first_row: row of the split that the first label belongs to.
        """
        if not self.labeled:
            return None
        if self.type == SINGLE_LABEL:
            wrong = valid & ((labels < 0) | (labels >= len(self.names)))
        elif self.type == MULTI_LABEL:
            wrong = valid & (labels > 1).any(1)
        else:
            wrong = valid & ~np.isfinite(labels).all(1)
        if not wrong.any():
            return None
        row = int(np.flatnonzero(wrong)[0])
        if self.type == SINGLE_LABEL:
            return f"row {first_row + row} has label {labels[row]}, there are {len(self.names)} class names"
        bad = labels[row] > 1 if self.type == MULTI_LABEL else ~np.isfinite(labels[row])
        name, value = self.names[int(np.flatnonzero(bad)[0])], labels[row][bad][0]
        must = "must be 0 or 1" if self.type == MULTI_LABEL else "must be a finite number"
        return f"row {first_row + row} has {value} for {name!r}, {must}"

    def counts(
        self, labels: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the samples of every class: int64 ``[C]``; of every quantity, the samples that have it (all): ``[T]``.

        Without labels, there are none to count: ``[0]``.

        Args:
            labels: as they are stored, ``[N, ...]``.
            valid: which rows count, ``[N]``; all if not given.
        """
        if not self.labeled:
            return np.zeros(0, np.int64)
        chosen = labels if valid is None else labels[valid]
        if self.type == SINGLE_LABEL:
            return np.bincount(chosen, minlength=len(self.names)).astype(np.int64)
        if self.type == MULTI_LABEL:
            return np.asarray(chosen.sum(0, dtype=np.int64))
        return np.full(len(self.names), len(chosen), np.int64)

    def describe(self) -> JsonObject:
        """Return what commands print with ``--json``: the target type, which is called ``kind`` there, names and units."""
        return {"kind": self.type, "names": list(self.names), "units": list(self.units)}

    def to_dict(self) -> JsonObject:
        """Return what goes beside ``class_names``: nothing for single labels, as it was before there were others."""
        if self.type == SINGLE_LABEL:
            return {}
        return {"targets": {"kind": self.type, "units": list(self.units)}}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], names: tuple[str, ...], where: str) -> Self:
        """Read kind and units back from the object that has the field ``targets``, or has it not.

        Raises:
            CacheError: a field is missing, of the wrong type or out of range.
        """
        targets = field(document, "targets", dict, where) if "targets" in document else {}
        units = text_list(targets, "units", where) if targets else ()
        problem = names_problem(names, units)
        if problem:
            raise CacheError(f"{where}: {problem}")
        if not targets:
            return cls(SINGLE_LABEL, names)
        target_type = field(targets, "kind", str, where)
        try:
            return cls(target_type, names, units)
        except ValueError as error:
            raise CacheError(f"{where}: field 'targets': {error}") from None


def names_problem(names: Sequence[str], units: Sequence[str] = ()) -> str | None:
    """Return why a cache cannot have these names and units; None if it can. Writers and readers both check."""
    for name in names:
        if any(ord(character) < 32 for character in name):
            return f"the name {ascii(name)[:80]} of a class or target has control characters"
        if not is_utf8(name):
            return f"the name {ascii(name)[:80]} of a class or target is not valid Unicode"
    for unit in units:
        if not unit.isprintable():
            return f"field 'units' must be a list of printable strings, got {ascii(unit)[:80]}"
    return None


def too_many_names(names: Sequence[str]) -> str | None:
    """Return why these names are too many or too long for a manifest; None if they fit."""
    if len(names) > MAX_CLASSES:
        return f"{len(names)} classes are more than the {MAX_CLASSES} that a cache can have"
    total = sum(len(name.encode()) for name in names)
    if total > MAX_NAMES_BYTES:
        return f"the names of the classes have {total} bytes, more than the {MAX_NAMES_BYTES} that a cache can have"
    return None
