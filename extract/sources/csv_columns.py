"""Find the columns of a table that hold the path, the split, the id and the labels."""

from pathlib import Path
from typing import NoReturn

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.collection import unlabeled_note
from featcache.extraction.sources.csv_file import Table
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.image_formats import EXTENSIONS
from featcache.extraction.sources.split_names import (
    are_flags,
    is_split_column,
    name_the_only_split,
    role_of,
    splits_of_column,
)
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.targets import UNLABELED

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path")
SPLIT_COLUMN, ID_COLUMN = "split", "id"


class Columns:
    """Return the names of the columns by their role.

    Args:
        path: path of the table, for errors.
        table: header and values of the table.
        argument: fields ``path``, ``split``, ``id`` and ``label`` may name columns; an empty ``split`` is for none.
        options: ``group_by`` may name one.

    Raises:
        RequestError: a column does not exist, or its role is ambiguous.
    """

    def __init__(self, path: Path, table: Table, argument: Argument, options: DatasetOptions) -> None:
        self._path, self._table, self._header = path, table, table.header
        self.notes: list[str] = []
        named = argument.fields
        usual = [name for name in self._header if name.lower() in PATH_COLUMNS]
        self.path = self._require_column("path", named.get("path")) or (
            usual[0] if usual else self._refuse_without_path()
        )
        if len(usual) > 1 and not named.get("path"):
            self.notes.append(
                f"column {self.path} of {path.name} is taken for the path, not {', '.join(usual[1:])}"
            )
        self.id = self._require_column("id", named.get("id")) or (
            ID_COLUMN if ID_COLUMN in self._header else None
        )
        group = self._require_column("group-by", options.group_by)
        labels = [self._require_column("label", name) or "" for name in argument.names("label")]
        unlabeled = options.target == UNLABELED
        if unlabeled and labels:
            raise RequestError(
                f"csv:...?label={','.join(labels)} names labels, and --target {UNLABELED} reads none; leave one of them out"
            )
        others = [name for name in self._header if name not in (self.path, self.id, group, *labels)]
        if "split" in named:
            self.split = self._require_column("split", named["split"])
        else:
            self.split = self._detect_split_column(others, labels, unlabeled)
        unread = [name for name in others if name != self.split]
        self.labels = labels or ([] if unlabeled else unread)
        if unlabeled and unread:
            self.notes.append(f"not read of {path.name} (--target {UNLABELED}): column {', '.join(unread)}")
        elif not self.labels:
            self.notes.append(unlabeled_note(path.name))
        self.used = list(dict.fromkeys(n for n in (self.path, self.split, self.id, group, *self.labels) if n))

    def _detect_split_column(self, others: list[str], labels: list[str], unlabeled: bool) -> str | None:
        """Return the column that holds the split of each sample, by its name and its values."""
        if SPLIT_COLUMN in others:
            return SPLIT_COLUMN
        candidates = [name for name in others if name.casefold() == SPLIT_COLUMN]
        candidates = candidates or [name for name in others if self._holds_splits(name)]
        if not candidates and not labels and not unlabeled:
            self._refuse_ambiguous(others)
        if not candidates and len(others) > 1 - bool(labels or unlabeled):
            candidates = [name for name in others if self._is_bare_flag(name, others, labels)]
        if len(candidates) > 1:
            raise RequestError(
                f"{self._path}: columns {', '.join(candidates)} may all be the split; name it as in csv:FILE?split={candidates[0]}"
            )
        if candidates:
            splits = list(dict.fromkeys(splits_of_column(candidates[0], self._table.column(candidates[0]))))
            self.notes.append(
                f"column {candidates[0]} of {self._path.name} is taken for its split ({', '.join(splits[:5])}); csv:FILE?split= "
                "reads the table without"
            )
        return candidates[0] if candidates else None

    def _holds_splits(self, name: str) -> bool:
        values = self._table.column(name)
        if not is_split_column(name):
            return len(self._header) > 2 and name_the_only_split(values)
        roles = {role_of(split) for split in splits_of_column(name, values)}
        return bool(values) and None not in roles

    def _refuse_ambiguous(self, others: list[str]) -> None:
        """Refuse a column ``fold`` or ``set`` of other values where it would become a label beside others."""
        doubtful = [name for name in others if is_split_column(name)]
        if doubtful and len(others) > 1:
            rest = ",".join(name for name in others if name not in doubtful)
            raise RequestError(
                f"{self._path}: column {doubtful[0]} may be the split or a label; name what it is as in "
                f"csv:FILE?label={rest} or csv:FILE?split={doubtful[0]}&label={rest}"
            )

    def _is_bare_flag(self, name: str, others: list[str], labels: list[str]) -> bool:
        """Return whether a column ``train`` or ``test`` is a flag of the split; among columns of 0 and 1 it may be a class."""
        if role_of(name) is None or not self._table.rows or not are_flags(self._table.column(name)):
            return False
        rest = labels or [other for other in others if other != name]
        if labels or not rest or not all(are_flags(self._table.column(other)) for other in rest):
            return True
        if len(rest) == 1:
            raise RequestError(
                f"{self._path}: column {name} may be a flag of the split or a class; name what it is as in "
                f"csv:FILE?split={name} or csv:FILE?label={','.join((*rest, name))}"
            )
        self.notes.append(f"column {name} of {self._path.name} is taken for a class, not for the split")
        return False

    def _require_column(self, role: str, name: str | None) -> str | None:
        if name and name not in self._header:
            raise UnknownNameError(f"{role} column", name, self._header, f"({self._path})")
        return name or None

    def _refuse_without_path(self) -> NoReturn:
        hint = "name it as in csv:FILE?path=NAME"
        if any(name.lower().endswith(tuple(EXTENSIONS)) for name in self._header):
            hint = "its first line must be a header such as path,label"
        raise RequestError(
            f"{self._path} has no column {', '.join(PATH_COLUMNS)}; it has {', '.join(self._header[:20])}: {hint}"
        )
