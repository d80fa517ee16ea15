"""``hdf5:FILE?images=x&labels=y``: images in an HDF5 file, as PCAM and many medical sets are published.

A contiguous array is read at its offset in the file. A chunked one is read in slices, in order, since HDF5 unpacks a whole
chunk for every row.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.arrays import Array, ArrayCollection, ArrayPart
from featcache.extraction.sources.collection import unlabeled_note
from featcache.extraction.sources.data_folders import unpack_once
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.hdf5_rows import ContiguousRows, Hdf5Rows, open_rows
from featcache.extraction.sources.split_names import ChosenSplits, choose_splits, note_splits_beside
from featcache.store.convert.h5_files import (
    find_dataset,
    find_linked,
    format_listing,
    group_size,
    h5_errors,
    list_datasets,
    open_h5,
    read_texts,
)
from featcache.store.errors import DatasetError, RequestError
from featcache.store.home import expanded
from featcache.store.progress import Reporter
from featcache.store.targets import UNLABELED
from featcache.store.text import printable

SPLIT = "{split}"
FIELDS = ("images", "labels", "labels_file", "ids", "classes")
MAX_READ_BYTES = 2**26


class Hdf5(ArrayCollection):
    """Images in HDF5 files; see `open_hdf5`."""

    def __init__(self, *arguments: Any, linked: Sequence[Path] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._linked = tuple(linked)
        self._ahead: OrderedDict[int, tuple[int, Array]] = OrderedDict()

    def _read_ahead(self, part: int, indices: Sequence[int]) -> None:
        images = self._images[part]
        if not isinstance(images, Hdf5Rows):
            return
        first, last = min(indices), max(indices)
        # Rows that are asked for may lie apart, where a split was made of every fourth; those between come along.
        if (last + 1 - first) * images.row_bytes <= MAX_READ_BYTES:
            self._ahead[part] = (first, images[first : last + 1])

    def _rows(self, part: int, start: int, stop: int) -> Array:
        first, rows = self._ahead.get(part, (0, ())) if hasattr(self, "_ahead") else (0, ())
        if first <= start and stop <= first + len(rows):
            return np.asarray(rows)[start - first : stop - first]
        return super()._rows(part, start, stop)

    def files(self, rows: Sequence[int]) -> Iterable[str | Path]:
        """Return the files of the dataset, including files that linked images lie in."""
        return [*self.containers, *self._linked]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read ahead."""
        return {**self.__dict__, "_ahead": OrderedDict()}


def open_hdf5(argument: Argument, options: DatasetOptions, reporter: Reporter) -> Hdf5:
    """Open HDF5 files as a dataset.

    FILE and the names may have ``{split}`` in them: one file, or one group, for every split. Labels that are not in the
    file of the images are looked for in ``labels_file``, or beside it under ``_y`` for ``_x``, as PCAM has it. Files that
    end in ``.gz`` are unpacked once.

    Raises:
        RequestError: a file or an array is not there; the message lists what is.
        DatasetError: images or labels are of a form that cannot be used, or a file is damaged.
    """
    argument.require_fields(*FIELDS)
    by_split = SPLIT in "".join((argument.place, *argument.fields.values()))
    chosen = _splits(argument, options) if by_split else ChosenSplits()
    linked: dict[str, Path] = {}
    parts = [
        _part(argument, split, spelling, options, reporter, linked)
        for split, spelling in (chosen.names or {"": ""}).items()
    ]
    if options.target != UNLABELED and all(part.labels is None for part in parts):
        linked_notes = [*linked, unlabeled_note(argument.path.name)]
    else:
        linked_notes = [*linked]
    name = re.sub(r"\.(gz|h5|hdf5|hdf)$", "", re.sub(r"\.gz$", "", argument.path.name.replace(SPLIT, "")))
    return Hdf5(
        argument.source_type,
        name.strip("-_."),
        parts,
        options,
        argument.names("classes"),
        chosen.unread,
        [*linked_notes, *([] if chosen.names else note_splits_beside(argument.path))],
        linked=list(linked.values()),
    )


def _splits(argument: Argument, options: DatasetOptions) -> ChosenSplits:
    """Return the splits to read, by the text that replaces ``{split}``."""
    if SPLIT in argument.place:
        pattern, folder = _pattern(argument.path.name), argument.path.parent
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    else:
        pattern = _pattern(_images(argument))
        with open_h5(argument.file()) as file:
            names = [name for name, _ in list_datasets(file, argument.path)]
    spellings = [match["split"] for name in names if (match := pattern.fullmatch(name))]
    if not spellings:
        raise RequestError(f"{argument.source_type}: nothing is there for any split in {argument.place}")
    return choose_splits(spellings, options, argument.place)


def _pattern(text: str) -> re.Pattern[str]:
    before, *rest = (re.escape(part) for part in text.split(SPLIT))
    return re.compile(f"{before}(?P<split>[^/]+){'(?P=split)'.join(rest)}")


def _images(argument: Argument) -> str:
    return argument.fields.get("images", "x")


def _part(
    argument: Argument,
    split: str,
    spelling: str,
    options: DatasetOptions,
    reporter: Reporter,
    linked: dict[str, Path],
) -> ArrayPart:
    """Return one split, which the file calls `spelling`; add linked files to `linked`, each with its note."""

    def filled(text: str) -> str:
        return text.replace(SPLIT, spelling)

    given = Argument(argument.source_type, filled(argument.place)).file()
    path = unpack_once(given, reporter)
    images = _image_rows(path, filled(_images(argument)), given, linked)
    label_name = filled(argument.fields.get("labels", "y"))
    labels = None
    if options.target != UNLABELED:
        label_file = _label_file(argument, given, path, label_name, filled)
        if not _plainly_unlabeled(argument, options, path, label_file == given):
            labels = _read_labels(unpack_once(label_file, reporter), label_name, label_file)
    ids = argument.fields.get("ids")
    columns = {options.group_by: _texts(path, filled(options.group_by), given)} if options.group_by else {}
    return ArrayPart(
        split,
        images,
        labels,
        f"{given}: {filled(_images(argument))}",
        _texts(path, filled(ids), given) if ids else None,
        columns,
    )


def _plainly_unlabeled(argument: Argument, options: DatasetOptions, path: Path, in_file: bool) -> bool:
    """Return whether a file holds nothing but images, ids and groups, so that no array could be the labels."""
    if not in_file or "labels" in argument.fields:
        return False
    known = [_images(argument), argument.fields.get("ids"), options.group_by]
    texts = [name.strip("/") for name in known if name]
    patterns = [_pattern(text) if SPLIT in text else re.compile(re.escape(text)) for text in texts]
    with open_h5(path) as file:
        names = [name.strip("/") for name, _ in list_datasets(file, path)]
    return all(any(pattern.fullmatch(name) for pattern in patterns) for name in names)


def _label_file(argument: Argument, given: Path, path: Path, name: str, filled: Callable[[str], str]) -> Path:
    if "labels_file" in argument.fields:
        file = expanded(filled(argument.fields["labels_file"]))
        file = file if file.is_absolute() or file.is_file() else given.parent / file
        return Argument(argument.source_type, str(file)).file()
    beside = given.with_name(re.sub(r"_x(?=\.)", "_y", given.name))
    with open_h5(path) as file:
        return beside if beside.is_file() and find_dataset(file, path, name) is None else given


def _image_rows(path: Path, name: str, given: Path, linked: dict[str, Path]) -> ContiguousRows | Hdf5Rows:
    """Return the rows of the images, which may be linked from a file beside this one."""
    linked_array = find_linked(path, name)
    if linked_array is None:
        raise _missing_array_error(path, name, given)
    if linked_array[0] != path:
        linked[f"{given}: {printable(name)} is read from {linked_array[0]}, to which it is linked"] = (
            linked_array[0]
        )
    return open_rows(*linked_array)


def _read_labels(path: Path, name: str, given: Path) -> Array:
    with open_h5(path) as file:
        dataset = find_dataset(file, path, name)
        if dataset is None:
            raise _missing_array_error(
                path, name, given, f"; or take the images without labels (--target {UNLABELED})"
            )
        if dataset.dtype.names:
            raise DatasetError(
                f"{given}: {name} has the fields {', '.join(dataset.dtype.names)}; store the labels as an array of their own"
            )
        if dataset.dtype.kind in "SO":
            return np.array(read_texts(dataset, given, name), object).reshape(dataset.shape)
        with h5_errors(f"{given}: {name}"):
            return np.asarray(dataset[()])


def _texts(path: Path, name: str, given: Path) -> list[str]:
    with open_h5(path) as file:
        dataset = find_dataset(file, path, name)
        if dataset is None:
            raise _missing_array_error(path, name, given)
        return read_texts(dataset, given, name)


def _missing_array_error(path: Path, name: str, given: Path, hint: str = "") -> RequestError:
    with open_h5(path) as file:
        size = group_size(file, path, name)
        if size is not None:
            return RequestError(
                f"{given}: {printable(name)} is a group of {size}; it must be one array, of images [N, H, W, C], or [N] with the "
                "bytes of an image file each"
            )
        return RequestError(
            f"{given} has no array {name!r}; it has {format_listing(file, path)}: name them as in hdf5:FILE?images=x&labels=y{hint}"
        )
