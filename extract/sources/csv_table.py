"""``csv:FILE``: a table with the path and the label of every image, and what else is known of it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.base import Rows
from featcache.extraction.sources.class_values import (
    DROP,
    KEEP,
    MISSING,
    missing_rows,
    refuse_missing_values,
    unify_spellings,
)
from featcache.extraction.sources.collection import (
    Collection,
    Listing,
    listing_digest,
    refuse_repeated,
)
from featcache.extraction.sources.csv_columns import Columns
from featcache.extraction.sources.csv_file import Table, read_table
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.decode import decode
from featcache.extraction.sources.label_columns import LabelColumns
from featcache.extraction.sources.path_column import find_images, portable_ids
from featcache.extraction.sources.samples import Texts
from featcache.extraction.sources.split_names import choose_splits, note_splits_beside, splits_of_column
from featcache.store.errors import DatasetError, RequestError
from featcache.store.home import expanded
from featcache.store.progress import Reporter

if TYPE_CHECKING:
    from PIL.Image import Image

FIELDS = ("path", "label", "split", "id", "root", "units", "missing", "encoding")


class CsvTable(Collection):
    """A table of images; see `open_csv`."""

    source_type = "csv"

    def __init__(self, argument: Argument, options: DatasetOptions) -> None:
        path = argument.file()
        argument.require_fields(*FIELDS)
        self.name = path.stem
        self._root = expanded(argument.fields.get("root", path.parent))
        table = read_table(path, argument.fields.get("encoding"))
        columns = Columns(path, table, argument, options)
        if not table.rows:
            raise DatasetError(f"{path} has no rows below its header")
        notes = [*table.notes, *columns.notes]
        left_out = _drop_rows_without_label(path, table, columns, argument)
        if left_out:
            notes.append(f"{left_out} rows of {path.name} have no label and are left out")
        values = {name: table.column(name) for name in columns.used}
        image_files = find_images(self._root, values[columns.path], path)
        self._paths = Texts.of(image_files.paths)
        label_columns = LabelColumns(
            path, {name: values[name] for name in columns.labels}, argument.fields.get("units")
        )
        labels, label_targets = label_columns.read(len(table.rows), options.target, notes)
        # Two rows may show the same image only if they are told apart.
        ids, about = (
            (values[columns.id], [])
            if columns.id
            else portable_ids(
                [
                    path.replace("\\", "/") if "\\" not in there else path
                    for path, there in zip(values[columns.path], image_files.paths, strict=True)
                ],
                self._root,
            )
        )
        if "" in ids:
            raise DatasetError(f"{path}: row {ids.index('') + 2} has no {columns.id or columns.path}")
        refuse_repeated(ids, f"{path}: {columns.id or columns.path}")
        groups, facts = _groups(path, values[options.group_by], notes) if options.group_by else ([], {})
        splits, parts, unread = _splits(path, columns.split, values, options, notes)
        contents = (
            image_files.sizes
            if splits is None
            else [f"{n}\0{split}" for n, split in zip(image_files.sizes, splits, strict=True)]
        )
        self.listing = Listing(
            Texts.of(ids),
            labels,
            label_targets,
            listing_digest((*label_targets.names, *label_targets.units), ids, contents, labels),
            parts,
            unread,
            {options.group_by: groups} if options.group_by else {},
            facts,
            notes=[*notes, *image_files.notes, *about],
            passed_over={"rows without a label": left_out} if left_out else {},
        )

    one_file_a_row = True

    def files(self, rows: Sequence[int]) -> Iterable[str | Path]:
        """Return the file of each of `rows`."""
        return (self._root / self._paths[row] for row in rows)

    def image(self, row: int) -> "Image":
        """Decode one image."""
        path = self._root / self._paths[row]
        return decode(path, path)


def open_csv(argument: Argument, options: DatasetOptions, reporter: Reporter) -> Collection:
    """Open a table as a dataset.

    Paths (column ``path``, or another usual name) are relative to the table, or to ``?root=DIR``. A column ``split``, or
    another that holds names or flags of splits, names splits; ``id`` names samples. ``?label=a,b`` names the columns of labels,
    by default all others; with no other column,
    or with ``--target none``, images have no labels. One column is the class of each sample; several columns of 0 and 1 are one class each; with
    ``--target regression`` they are real values, with units in brackets behind their names (``weight [kg]``).
    ``?missing=drop`` leaves out rows without a label; ``?missing=class`` takes texts such as ``NA`` for classes.

    Raises:
        RequestError: a column does not exist, or its role is ambiguous.
        DatasetError: files are missing, or values cannot be such labels.
    """
    return CsvTable(argument, options)


def _drop_rows_without_label(path: Path, table: Table, columns: Columns, argument: Argument) -> int:
    """Leave out rows with a missing label if ``?missing=drop`` asks for it; return their number."""
    choice = argument.fields.get("missing")
    if choice not in (None, DROP, KEEP):
        raise RequestError(f"missing of csv must be {DROP} or {KEEP}, got {choice!r}")
    labels = [table.column(name) for name in columns.labels]
    missing = missing_rows(labels, only_empty=choice == KEEP)
    if choice != DROP:
        refuse_missing_values(missing, labels, str(path))
    if not missing or choice != DROP:
        return 0
    if len(missing) == len(table.rows):
        raise DatasetError(f"{path}: no row has a label in column {', '.join(columns.labels)}")
    gone = set(missing)
    table.rows = [values for row, values in enumerate(table.rows) if row not in gone]
    return len(missing)


def _groups(path: Path, values: Sequence[str], notes: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the groups in one spelling each, and the entries that they add to the identity."""
    groups, about = unify_spellings(values, f"{path.name}: groups")
    lacking = sum(value in MISSING for value in values)
    if lacking:
        notes.append(f"{lacking} rows of {path.name} have no group and are kept together as one")
    notes += about
    return groups, {"groups": "unified"} if about else {}


def _splits(
    path: Path,
    column: str | None,
    values: dict[str, list[str]],
    options: DatasetOptions,
    notes: list[str],
) -> tuple[list[str] | None, dict[str, Rows], tuple[str, ...]]:
    """Return the split of every row by its role here, the rows by split, and the splits that are not read."""
    if column is None:
        notes += note_splits_beside(path)
        return None, {}, ()
    spelled = splits_of_column(column, values[column])
    lacking = next((row for row, split in enumerate(spelled) if split in MISSING), None)
    if lacking is not None:
        raise DatasetError(
            f"{path}: row {lacking + 2} has {spelled[lacking]!r} in column {column!r}; every row needs a split, or none: "
            "csv:FILE?split= reads the table without"
        )
    chosen = choose_splits(list(dict.fromkeys(spelled)), options, str(path))
    notes += chosen.notes(path.name)
    # The digest holds these names, so it is the same in every spelling, and differs from those of earlier versions.
    names = {spelling: name for name, spelling in chosen.names.items()}
    splits = [names.get(split, split) for split in spelled]
    table = np.array(spelled)
    return splits, {n: np.flatnonzero(table == split) for n, split in chosen.names.items()}, chosen.unread
