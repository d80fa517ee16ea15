"""Labels by sample id, read from a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.extraction.labeling.request import LabelRequest
from featcache.extraction.sources.base import Labels
from featcache.extraction.sources.class_values import missing_rows
from featcache.extraction.sources.collection import refuse_repeated
from featcache.extraction.sources.csv_columns import PATH_COLUMNS
from featcache.extraction.sources.csv_file import Table, read_table
from featcache.extraction.sources.label_columns import LabelColumns
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.reading.reader import Cache
from featcache.store.targets import Targets, names_problem, too_many_names

_ID_COLUMNS = ("id", "sample_id", *PATH_COLUMNS)
_SHOWN = 5


@dataclass(frozen=True)
class LabelTable:
    """The labels of M samples."""

    ids: Sequence[str]
    labels: Labels
    """``[M, ...]`` in the stored type of `targets`."""
    targets: Targets
    columns: Sequence[str]
    """Columns that were read as labels."""
    notes: Sequence[str]
    """Notes for people, such as merged spellings of a class."""

    def by_split(self, cache: Cache, where: object) -> Mapping[str, Labels]:
        """Return the labels ``[N, ...]`` of every split of a cache, in row order.

        Rows without features need no label; without one they get zeros, which mean nothing there.

        Args:
            cache: the cache.
            where: names the table in errors.

        Raises:
            DatasetError: the table has an id that the cache lacks, or lacks one that the cache has.
        """
        places = {sample_id: place for place, sample_id in enumerate(self.ids)}
        found: dict[str, Labels] = {}
        lacking, used = [], np.zeros(len(self.ids), np.bool_)
        for name in cache.inventory.splits:
            valid, ids = cache[name].valid(), cache[name].sample_ids()
            rows = np.array([places.get(sample_id, -1) for sample_id in ids], np.int64)
            lacking += [ids[row] for row in np.flatnonzero((rows < 0) & valid).tolist()]
            used[rows[rows >= 0]] = True
            found[name] = np.zeros((len(rows), *self.labels.shape[1:]), self.labels.dtype)
            found[name][rows >= 0] = self.labels[rows[rows >= 0]]
        unknown = [self.ids[place] for place in np.flatnonzero(~used).tolist()]
        problems = [
            *([f"{len(lacking)} samples of the cache have no row ({_some(lacking)})"] if lacking else []),
            *([f"{len(unknown)} ids are none of the cache's ({_some(unknown)})"] if unknown else []),
        ]
        if problems:
            hint = (
                f"; ids of the cache are such as {next(iter(cache.values())).sample_ids()[0]!r}"
                if unknown
                else ""
            )
            raise DatasetError(
                f"{where}: {' and '.join(problems)}{hint}; the table must have a row for each sample, and no other"
            )
        return found


def read_label_table(path: Path, request: LabelRequest) -> LabelTable:
    """Read the labels in the table at `path`.

    Raises:
        RequestError: the table or a column does not exist, or there is none of ids or labels.
        DatasetError: ids are missing or doubled, or values cannot be labels.
    """
    if not path.is_file():
        raise RequestError(f"table {path!s:.300} does not exist or is not a file")
    table = read_table(path, request.encoding)
    if not table.rows:
        raise DatasetError(f"{path} has no rows below its header")
    id_column = _id_column(path, request, table)
    columns = request.labels or [name for name in table.header if name != id_column]
    for name in columns:
        if name not in table.header:
            raise UnknownNameError("label column", name, table.header, f"({path})")
    if not columns or id_column in columns:
        raise RequestError(f"{path} has no label column beside {id_column}; name some with --label")
    ids = table.column(id_column)
    if "" in ids:
        raise DatasetError(f"{path}: row {ids.index('') + 2} has no {id_column}")
    refuse_repeated(ids, f"{path}: {id_column}")
    values = {name: table.column(name) for name in columns}
    _refuse_missing(path, values)
    notes = list(table.notes)
    naming = LabelColumns(path, values, request.units, naming="--label ")
    labels, targets = naming.read(len(ids), request.target, notes)
    problem = names_problem(targets.names, targets.units) or too_many_names(targets.names)
    if problem:
        raise DatasetError(f"{path}: {problem}")
    return LabelTable(ids, labels, targets, tuple(columns), notes)


def _id_column(path: Path, request: LabelRequest, table: Table) -> str:
    if request.id_column is not None:
        if request.id_column not in table.header:
            raise UnknownNameError("id column", request.id_column, table.header, f"({path})")
        return request.id_column
    usual = [name for choice in _ID_COLUMNS for name in table.header if name.casefold() == choice]
    if not usual:
        raise RequestError(
            f"{path} has no column {', '.join(_ID_COLUMNS)}; it has {', '.join(table.header[:20])}: name that of the "
            "sample ids with --id"
        )
    return usual[0]


def _refuse_missing(path: object, values: Mapping[str, Sequence[str]]) -> None:
    missing = missing_rows(list(values.values()))
    if missing:
        shown = ", ".join(str(row + 2) for row in missing[:_SHOWN])
        raise DatasetError(f"{path}: labels are missing in {len(missing)} rows (row {shown}); fill them in")


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
