"""``hdf5:FILE?images=x&labels=y``: images in an HDF5 file, as PCAM and many medical sets are published.

A contiguous dataset is mapped. A chunked one is read in slices, in order: HDF5 unpacks a whole chunk for every row of it.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.extract.sources.argument import Argument
from featcache.extract.sources.arrays import Array, ArrayCollection, ArrayPart
from featcache.extract.sources.dataset import DatasetOptions
from featcache.extract.sources.places import unpacked
from featcache.store.convert.h5_files import open_h5
from featcache.store.errors import DatasetError, RequestError
from featcache.store.home import expanded
from featcache.store.progress import Reporter

if TYPE_CHECKING:
    import h5py

SPLIT = "{split}"
FIELDS = ("images", "labels", "labels_file", "ids", "classes")
MAX_READ_BYTES = 2**26


class Hdf5(ArrayCollection):
    """Images in HDF5 files; see `open_hdf5`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ahead: OrderedDict[int, tuple[int, Array]] = OrderedDict()

    def _read_ahead(self, part: int, indices: Sequence[int]) -> None:
        images = self._images[part]
        if not isinstance(images, _Chunked):
            return
        first, last = min(indices), max(indices)
        row_bytes = int(np.prod(images.shape[1:])) * images.dtype.itemsize
        # Rows that are asked for may lie apart, where a split was made of every fourth; those between come along.
        if (last + 1 - first) * row_bytes <= MAX_READ_BYTES:
            self._ahead[part] = (first, images[first : last + 1])

    def _row(self, part: int, index: int) -> Array:
        first, rows = self._ahead.get(part, (0, ()))
        if first <= index < first + len(rows):
            return np.asarray(rows[index - first])
        return super()._row(part, index)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was read ahead."""
        return {**self.__dict__, "_ahead": OrderedDict()}


class _Mapped:
    """A contiguous dataset, mapped where it is read: numpy would copy all of a map into a pickle."""

    def __init__(self, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._offset = path, offset
        self._map: Array | None = None

    def __getitem__(self, rows: int | slice) -> Array:
        if self._map is None:
            self._map = np.memmap(self._path, self.dtype, "r", self._offset, self.shape)
        return np.asarray(self._map[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


class _Chunked:
    """A dataset of an HDF5 file that is opened where it is read: a handle survives neither a fork nor a pickle."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._name = path, name
        self._dataset: h5py.Dataset | None = None
        self._process = 0

    def __getitem__(self, rows: int | slice) -> Array:
        import h5py

        if self._dataset is None or self._process != os.getpid():
            self._dataset, self._process = h5py.File(self._path, "r")[self._name], os.getpid()
        try:
            return np.asarray(self._dataset[rows])
        except OSError as error:
            raise DatasetError(f"{self._path}: {self._name} cannot be read ({error})") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}


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
    names, unread = _splits(argument, options) if by_split else ([""], [])
    parts = [_part(argument, split, options, reporter) for split in names]
    name = re.sub(r"\.(gz|h5|hdf5|hdf)$", "", re.sub(r"\.gz$", "", argument.path.name.replace(SPLIT, "")))
    return Hdf5(argument.kind, name.strip("-_."), parts, options.target, argument.names("classes"), unread)


def _splits(argument: Argument, options: DatasetOptions) -> tuple[list[str], list[str]]:
    """Splits that are wanted and there, and those that are there alone."""
    if SPLIT in argument.place:
        pattern = re.compile(re.escape(argument.path.name).replace(re.escape(SPLIT), "(.+)"))
        folder = argument.path.parent
        found = [
            match[1]
            for entry in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if (match := pattern.fullmatch(entry.name))
        ]
    else:
        pattern = re.compile(re.escape(_images(argument)).replace(re.escape(SPLIT), "(.+)"))
        with open_h5(argument.file()) as file:
            found = [match[1] for name in _datasets(file) if (match := pattern.fullmatch(name))]
    if not found:
        raise RequestError(f"{argument.kind}: nothing is there for any split in {argument.place}")
    wanted = [split for split in options.own_splits if split in found]
    return wanted, [split for split in found if split not in options.own_splits]


def _images(argument: Argument) -> str:
    return argument.fields.get("images", "x")


def _part(argument: Argument, split: str, options: DatasetOptions, reporter: Reporter) -> ArrayPart:
    def filled(text: str) -> str:
        return text.replace(SPLIT, split)

    given = Argument(argument.kind, filled(argument.place)).file()
    path = unpacked(given, reporter)
    images = _dataset(path, filled(_images(argument)), given)
    label_name = filled(argument.fields.get("labels", "y"))
    label_file = _label_file(argument, given, path, label_name, filled)
    labels = _whole(unpacked(label_file, reporter), label_name, label_file)
    ids = argument.fields.get("ids")
    columns = (
        {options.group_by: _texts(_whole(path, filled(options.group_by), given))} if options.group_by else {}
    )
    return ArrayPart(
        split,
        images,
        labels,
        f"{given}: {filled(_images(argument))}",
        _texts(_whole(path, filled(ids), given)) if ids else None,
        columns,
    )


def _label_file(argument: Argument, given: Path, path: Path, name: str, filled: Callable[[str], str]) -> Path:
    if "labels_file" in argument.fields:
        file = expanded(filled(argument.fields["labels_file"]))
        file = file if file.is_absolute() or file.is_file() else given.parent / file
        return Argument(argument.kind, str(file)).file()
    beside = given.with_name(re.sub(r"_x(?=\.)", "_y", given.name))
    with open_h5(path) as file:
        return beside if name not in file and beside.is_file() else given


def _dataset(path: Path, name: str, given: Path) -> Any:
    """A dataset as a map, or as something to slice."""
    with open_h5(path) as file:
        dataset = _require(file, name, given)
        shape, dtype, offset = tuple(dataset.shape), dataset.dtype, dataset.id.get_offset()
        contiguous = dataset.chunks is None and offset is not None and not dataset.external
    if contiguous and dtype.isnative and int(np.prod(shape)):
        return _Mapped(path, dtype, offset, shape)
    return _Chunked(path, name, shape, dtype)


def _whole(path: Path, name: str, given: Path) -> Array:
    with open_h5(path) as file:
        try:
            return np.asarray(_require(file, name, given)[()])
        except OSError as error:
            raise DatasetError(f"{given}: {name} cannot be read ({error})") from None


def _texts(values: Array) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.ravel().tolist()]


def _require(file: "h5py.File", name: str, given: Path) -> "h5py.Dataset":
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        listed = ", ".join(f"{key} {list(file[key].shape)} {file[key].dtype}" for key in _datasets(file)[:20])
        raise RequestError(
            f"{given} has no array {name!r}; it has {listed or 'no arrays'}: name them as in hdf5:FILE?images=x&labels=y"
        )
    return found


def _datasets(file: "h5py.File") -> list[str]:
    import h5py

    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names
