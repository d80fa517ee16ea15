"""Labels in the columns of a table: one class, several columns of 0 and 1, or real values with their units."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.extraction.sources.base import Labels
from featcache.extraction.sources.class_values import unify_classes
from featcache.extraction.sources.collection import NO_TARGETS, class_labels, no_labels
from featcache.store.errors import DatasetError, RequestError
from featcache.store.requests import AUTO
from featcache.store.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Targets

_UNIT = re.compile(r"(.*\S)\s*[\[(]([^\])]+)[\])]")


@dataclass(frozen=True)
class LabelColumns:
    """The columns of a table that are labels."""

    path: Path
    """The table, for errors."""
    columns: Mapping[str, Sequence[str]]
    """Texts ``[N]`` of every column by name; none if there are no labels."""
    units: str | None = None
    """Units of real values, with commas; by default they stand in brackets behind the names, as in ``weight [kg]``."""
    naming: str = "csv:FILE?label="
    """How label columns are named where this table was, for errors."""

    def read(self, num_rows: int, target_type: str, notes: list[str]) -> tuple[Labels, Targets]:
        """Return the labels of all rows in their stored type, and their targets; add notes on them to `notes`.

        Args:
            num_rows: N.
            target_type: target type; ``auto`` reads one column as classes, several as one class each.
            notes: receives notes on merged spellings and odd values.

        Raises:
            RequestError: there are several columns for one class, or units do not go with the columns.
            DatasetError: a value cannot be such a label.
        """
        if not self.columns:
            return no_labels(num_rows), NO_TARGETS
        if target_type == AUTO:
            target_type = SINGLE_LABEL if len(self.columns) == 1 else MULTI_LABEL
        if target_type == SINGLE_LABEL:
            return self._classes(notes)
        table = np.stack([self._numbers(name, values) for name, values in self.columns.items()], 1)
        if target_type == MULTI_LABEL:
            self._refuse_other_than_flags(table)
            return table.astype(np.uint8), Targets(MULTI_LABEL, tuple(self.columns))
        return table.astype(np.float32), self._quantities()

    def _classes(self, notes: list[str]) -> tuple[Labels, Targets]:
        if len(self.columns) > 1:
            raise RequestError(
                f"{self.path} has label columns {', '.join(self.columns)}; name one as in {self.naming}NAME"
            )
        (values,) = self.columns.values()
        unified, about = unify_classes(values, self.path.name)
        notes += about
        labels, names = class_labels(unified)
        return labels, Targets(SINGLE_LABEL, names)

    def _refuse_other_than_flags(self, table: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> None:
        wrong = np.argwhere(~np.isin(table, (0, 1)))
        if len(wrong):
            row, column = (int(index) for index in wrong[0])
            name = list(self.columns)[column]
            raise DatasetError(
                f"{self.path}: row {row + 2} has {self.columns[name][row]!r} in column {name!r}, must be 0 or 1 for several "
                f"classes; name the label columns as in {self.naming}a,b, or give --target regression"
            )

    def _quantities(self) -> Targets:
        matches = [_UNIT.fullmatch(name) for name in self.columns]
        names = tuple(match[1] if match else name for match, name in zip(matches, self.columns, strict=True))
        given = None if self.units is None else tuple(self.units.split(","))
        units = tuple(match[2] if match else "" for match in matches) if given is None else given
        if len(units) != len(names):
            raise RequestError(f"units={','.join(units)} must be one for each of {', '.join(names)}")
        return Targets(REGRESSION, names, units if any(units) else ())

    def _numbers(
        self, name: str, values: Sequence[str]
    ) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
        numbers = np.empty(len(values))
        for row, value in enumerate(values):
            try:
                numbers[row] = float(value)
            except ValueError:
                numbers[row] = np.nan
            if not np.isfinite(numbers[row]):
                raise DatasetError(
                    f"{self.path}: row {row + 2} has {value!r} in column {name!r}, which is no number; name the label columns "
                    f"as in {self.naming}a,b"
                )
        return numbers
