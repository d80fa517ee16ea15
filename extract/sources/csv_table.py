"""``csv:FILE``: a table with the path and the label of every image, and what else is known of it."""

import csv
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from featcache.extract.sources.argument import Argument
from featcache.extract.sources.base import Labels, Rows
from featcache.extract.sources.collection import (
    Collection,
    Listing,
    class_labels,
    listing_digest,
    refuse_repeated,
)
from featcache.extract.sources.dataset import AUTO, DatasetOptions
from featcache.extract.sources.decode import decode
from featcache.extract.sources.samples import Texts
from featcache.extract.sources.shards import refuse_missing
from featcache.store.errors import DatasetError, RequestError, UnknownNameError
from featcache.store.home import expanded
from featcache.store.progress import Reporter
from featcache.store.targets import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Targets

if TYPE_CHECKING:
    from PIL.Image import Image

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path")
SPLIT_COLUMN, ID_COLUMN = "split", "id"
FIELDS = ("path", "label", "split", "id", "root", "units")
STAT_THREADS = 16
_UNIT = re.compile(r"(.*\S)\s*[\[(]([^\])]+)[\])]")


class CsvTable(Collection):
    """A table of images; see `open_csv`."""

    kind = "csv"

    def __init__(self, argument: Argument, options: DatasetOptions) -> None:
        path = argument.file()
        argument.require_fields(*FIELDS)
        self.name = path.stem
        self._root = expanded(argument.fields.get("root", path.parent))
        header, rows = _read(path)
        columns = _Columns(path, header, argument, options)
        if not rows:
            raise DatasetError(f"{path} has no rows below its header")
        values = {name: [row[header.index(name)] for row in rows] for name in columns.used}
        self._paths = Texts.of(values[columns.path])
        sizes = self._sizes(path)
        labels, targets = _targets(path, {name: values[name] for name in columns.labels}, argument, options)
        # Two rows may show the same image only if they are told apart.
        ids = values[columns.id or columns.path]
        refuse_repeated(ids, f"{path}: {columns.id or columns.path}")
        parts = _parts(values[columns.split]) if columns.split else {}
        splits = (
            [f"{content}\0{split}" for content, split in zip(sizes, values[columns.split], strict=True)]
            if columns.split
            else sizes
        )
        unread = [name for name in parts if name not in options.own_splits]
        self.listing = Listing(
            Texts.of(ids),
            labels,
            targets,
            listing_digest((*targets.names, *targets.units), ids, splits, labels),
            {name: parts[name] for name in options.own_splits if name in parts},
            unread,
            {options.group_by: values[options.group_by]} if options.group_by else {},
        )

    def image(self, row: int) -> "Image":
        """Decode one image."""
        path = self._root / self._paths[row]
        return decode(path, path)

    def _sizes(self, table: Path) -> list[int]:
        """Sizes of all files; those that are not there are named."""

        def size(path: str) -> int:
            try:
                return os.stat(self._root / path).st_size
            except OSError:
                return -1

        with ThreadPoolExecutor(STAT_THREADS) as pool:
            sizes = list(pool.map(size, self._paths, chunksize=512))
        refuse_missing(
            [path for path, found in zip(self._paths, sizes, strict=True) if found < 0],
            f"images (below {self._root})",
            str(table),
        )
        return sizes


def open_csv(argument: Argument, options: DatasetOptions, reporter: Reporter) -> Collection:
    """Open a table as a dataset.

    Paths (column ``path``, or another usual name) are relative to the table, or to ``?root=DIR``. A column ``split`` names
    splits, ``id`` names samples. All other columns are labels, or those of ``?label=a,b``: one is the class of each sample;
    several, of 0 and 1, are as many classes; with ``--target regression`` they are real values, units in brackets behind
    their names (``weight [kg]``).

    Raises:
        RequestError: columns are not there.
        DatasetError: files are missing, or values cannot be such labels.
    """
    return CsvTable(argument, options)


class _Columns:
    """Which column is what."""

    def __init__(self, path: Path, header: list[str], argument: Argument, options: DatasetOptions) -> None:
        self._path, self._header = path, header
        named = argument.fields
        usual = next((name for name in header if name.lower() in PATH_COLUMNS), None)
        self.path = self._named("path", named.get("path")) or usual or self._lacking()
        self.split = self._named("split", named.get("split")) or (
            SPLIT_COLUMN if SPLIT_COLUMN in header else None
        )
        self.id = self._named("id", named.get("id")) or (ID_COLUMN if ID_COLUMN in header else None)
        group = self._named("group-by", options.group_by)
        others = [name for name in header if name not in (self.path, self.split, self.id, group)]
        labels = argument.names("label")
        self.labels = [self._named("label", name) or "" for name in labels] or others
        if not self.labels:
            raise RequestError(
                f"{path} has no label column; it has {', '.join(header)}: name it as in csv:FILE?label=NAME"
            )
        self.used = list(dict.fromkeys(n for n in (self.path, self.split, self.id, group, *self.labels) if n))

    def _named(self, what: str, name: str | None) -> str | None:
        if name and name not in self._header:
            raise UnknownNameError(f"{what} column", name, self._header, f"({self._path})")
        return name or None

    def _lacking(self) -> NoReturn:
        raise RequestError(
            f"{self._path} has no column {', '.join(PATH_COLUMNS)}; it has {', '.join(self._header)}: name it as in "
            "csv:FILE?path=NAME"
        )


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows; separated by commas, semicolons or tabs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        lines = [line for line in csv.reader(text.splitlines(), delimiter=separator, strict=True) if line]
    except csv.Error as error:
        raise DatasetError(f"{path} cannot be read as CSV ({error})") from None
    if not lines:
        raise DatasetError(f"{path} is empty; it needs a header such as path,label")
    header = [name.strip() for name in lines[0]]
    if len(set(header)) < len(header):
        raise DatasetError(f"{path}: columns have the same name: {', '.join(header)}")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise DatasetError(f"{path}: row {number} has {len(line)} fields, the header {len(header)}")
    return header, [[value.strip() for value in line] for line in lines[1:]]


def _parts(splits: Sequence[str]) -> dict[str, Rows]:
    names = np.array(splits)
    return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(splits)}


def _targets(
    path: Path, columns: dict[str, list[str]], argument: Argument, options: DatasetOptions
) -> tuple[Labels, Targets]:
    kind = options.target
    if kind == AUTO:
        kind = SINGLE_LABEL if len(columns) == 1 else MULTI_LABEL
    if kind == SINGLE_LABEL:
        if len(columns) > 1:
            raise RequestError(
                f"{path} has label columns {', '.join(columns)}; name one as in csv:FILE?label=NAME"
            )
        (values,) = columns.values()
        for number, value in enumerate(values, 2):
            if not value:
                raise DatasetError(f"{path}: row {number} has no label")
        labels, names = class_labels(values)
        return labels, Targets(SINGLE_LABEL, names)
    table = np.stack([_numbers(path, name, values) for name, values in columns.items()], 1)
    if kind == MULTI_LABEL:
        wrong = np.argwhere(~np.isin(table, (0, 1)))
        if len(wrong):
            row, column = (int(index) for index in wrong[0])
            name = list(columns)[column]
            raise DatasetError(
                f"{path}: row {row + 2} has {columns[name][row]!r} in column {name!r}, must be 0 or 1 for several classes; "
                "name the label columns as in csv:FILE?label=a,b, or give --target regression"
            )
        return table.astype(np.uint8), Targets(MULTI_LABEL, tuple(columns))
    found = [_UNIT.fullmatch(name) for name in columns]
    names = tuple(match[1] if match else name for match, name in zip(found, columns, strict=True))
    units = (
        tuple(argument.fields["units"].split(","))
        if "units" in argument.fields
        else tuple(m[2] if m else "" for m in found)
    )
    if len(units) != len(names):
        raise RequestError(f"units={','.join(units)} must be one for each of {', '.join(names)}")
    return table.astype(np.float32), Targets(REGRESSION, names, units if any(units) else ())


def _numbers(
    path: Path, name: str, values: Sequence[str]
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    numbers = np.empty(len(values))
    for row, value in enumerate(values):
        try:
            numbers[row] = float(value)
        except ValueError:
            numbers[row] = np.nan
        if not np.isfinite(numbers[row]):
            raise DatasetError(
                f"{path}: row {row + 2} has {value!r} in column {name!r}, which is no number; name the label columns as in "
                "csv:FILE?label=a,b"
            )
    return numbers
