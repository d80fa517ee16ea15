"""``npz:FILE``: images and labels as arrays of one NumPy archive, MedMNIST's ``train_images`` and Keras's ``x_train`` included."""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.arrays import Array, ArrayCollection, ArrayPart
from featcache.extraction.sources.collection import unlabeled_note
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.split_names import ChosenSplits, choose_splits, note_splits_beside
from featcache.store.errors import DatasetError, RequestError
from featcache.store.machine import available_memory
from featcache.store.npy import npy_layout, read_npy
from featcache.store.progress import Reporter
from featcache.store.targets import UNLABELED
from featcache.store.text import printable, reason
from featcache.store.unpacking import MAX_RATIO

IMAGES, LABELS = ("images", "x", "X", "image", "data"), ("labels", "y", "Y", "label", "targets")
_ARRAY = b"\x93NUMPY"
_ERRORS = (
    *(ValueError, OSError, EOFError, RuntimeError, NotImplementedError, KeyError, IndexError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""Errors that zipfile raises for archives that are damaged, encrypted or packed by an unknown method."""


def open_npz(argument: Argument, options: DatasetOptions, reporter: Reporter) -> ArrayCollection:
    """Open an archive as a dataset; arrays are read into memory, which worker processes share.

    The arrays are ``images`` and ``labels`` (or ``x`` and ``y``), or the ones that ``?images=NAME&labels=NAME`` names. With
    several splits, their names have a prefix ``train_``, ``test_`` and so on, or a suffix ``_train``, ``_test``.

    Raises:
        RequestError: arrays are not there; the message lists what is.
        DatasetError: the file is no archive of plain arrays, or the form of the arrays cannot be used.
    """
    argument.require_fields("images", "labels", "classes")
    path = argument.file()
    with _Archive(path) as archive:
        chosen = choose_splits(_splits(archive.names, argument), options, str(path))
        parts = [
            _part(archive, split, spelling, argument, options)
            for split, spelling in (chosen.names or {"": ""}).items()
        ]
        return _collection(path, parts, argument, options, chosen)


def _collection(
    path: Path, parts: Sequence[ArrayPart], argument: Argument, options: DatasetOptions, chosen: ChosenSplits
) -> ArrayCollection:
    beside = [] if chosen.names else note_splits_beside(path)
    if options.target != UNLABELED and all(part.labels is None for part in parts):
        beside = [*beside, unlabeled_note(path.name)]
    return ArrayCollection("npz", path.stem, parts, options, argument.names("classes"), chosen.unread, beside)


class _Archive:
    """The arrays of an archive by name; each declared size is checked against the stored bytes before memory is taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if file.read(len(_ARRAY)) == _ARRAY:
                    raise DatasetError(
                        f"{path} is a single array; save images and labels together with numpy.savez"
                    )
            if not zipfile.is_zipfile(path):
                raise DatasetError(f"{path} cannot be read as NumPy's npz (it is no archive of arrays)")
            self._zip = zipfile.ZipFile(path)
        except DatasetError:
            raise
        except _ERRORS as error:
            raise DatasetError(f"{path} cannot be read as NumPy's npz ({reason(error)})") from None
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist()]

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()

    def read(self, name: str) -> Array:
        """Read one array as a whole.

        Raises:
            DatasetError: the array is damaged, holds Python objects, or is larger than the memory.
        """
        try:
            stored = name if name in self._zip.namelist() else f"{name}.npy"
            info = self._zip.getinfo(stored)
            if info.file_size > MAX_RATIO * info.compress_size + 2**16:
                raise ValueError(f"it says that {info.compress_size} bytes unpack to {info.file_size}")
            with self._zip.open(info) as file:
                num_bytes = npy_layout(file, info.file_size).num_bytes
            if num_bytes > available_memory():
                raise MemoryError
            with self._zip.open(info) as file:
                return read_npy(file, info.file_size)
        except MemoryError:
            raise DatasetError(
                f"{self.path}: array {printable(name)} does not fit into memory; store it as HDF5, which is read in pieces"
            ) from None
        except _ERRORS as error:
            raise DatasetError(
                f"{self.path}: array {printable(name)} cannot be read ({reason(error)})"
            ) from None


def _splits(names: Sequence[str], argument: Argument) -> list[str]:
    """Return the splits that arrays are named after; none if images exist without a split in their name."""
    images = [argument.fields["images"]] if "images" in argument.fields else IMAGES
    if any(name in names for name in images):
        return []
    before = [name.rpartition("_") for name in names]
    behind = [name.partition("_") for name in names]
    splits = [split for split, _, array in before if split and array in images]
    splits += [split for array, _, split in behind if split and array in images]
    return list(dict.fromkeys(splits))


def _part(
    archive: _Archive, split: str, spelling: str, argument: Argument, options: DatasetOptions
) -> ArrayPart:
    def find(field: str, usual: Sequence[str], hint: str = "") -> str:
        choices = [argument.fields[field]] if field in argument.fields else usual
        forms = [form for choice in choices for form in _forms(spelling, choice)]
        name = next((form for form in forms if form in archive.names), None)
        if name is None:
            raise RequestError(
                f"{archive.path} has no array {forms[0]}; it has {', '.join(map(printable, archive.names)) or 'none'}: name them "
                f"as in npz:FILE?images=x&labels=y{hint}"
            )
        return name

    images = find("images", IMAGES)
    labels = None
    if options.target != UNLABELED and not _plainly_unlabeled(archive, argument, options):
        labels = find("labels", LABELS, f"; or take the images without labels (--target {UNLABELED})")
    columns: dict[str, list[Any]] = {}
    if options.group_by:
        name = next((form for form in _forms(spelling, options.group_by) if form in archive.names), None)
        if name is None:
            raise RequestError(
                f"{archive.path} has no array {options.group_by}; it has {', '.join(map(printable, archive.names))}"
            )
        columns = {options.group_by: archive.read(name).ravel().tolist()}
    values = archive.read(images)
    if values.dtype.kind == "S":  # image files, which would lose their trailing zeros
        values = values.view(f"V{values.dtype.itemsize}")
    return ArrayPart(
        split, values, archive.read(labels) if labels else None, f"{archive.path}: {images}", columns=columns
    )


def _plainly_unlabeled(archive: _Archive, argument: Argument, options: DatasetOptions) -> bool:
    """Return whether an archive holds nothing but images (and the column of groups), so that no array could be the labels."""
    if "labels" in argument.fields:
        return False
    known = {argument.fields["images"]} if "images" in argument.fields else {*IMAGES}
    known |= {options.group_by} if options.group_by else set()
    return all(
        name in known or name.partition("_")[0] in known or name.rpartition("_")[2] in known
        for name in archive.names
    )


def _forms(split: str, name: str) -> list[str]:
    return [f"{split}_{name}", f"{name}_{split}"] if split else [name]
