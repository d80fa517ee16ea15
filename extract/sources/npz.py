"""``npz:FILE``: images and labels as arrays of one NumPy archive, MedMNIST's ``train_images`` and ``train_labels`` included."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featcache.extract.sources.argument import Argument
from featcache.extract.sources.arrays import Array, ArrayCollection, ArrayPart
from featcache.extract.sources.dataset import DatasetOptions
from featcache.store.errors import DatasetError, RequestError
from featcache.store.progress import Reporter

IMAGES, LABELS = ("images", "x", "X", "image", "data"), ("labels", "y", "Y", "label", "targets")


def open_npz(argument: Argument, options: DatasetOptions, reporter: Reporter) -> ArrayCollection:
    """Open an archive as a dataset; arrays are read into memory, which worker processes share.

    Arrays are ``images`` and ``labels`` (or ``x`` and ``y``), or those that ``?images=NAME&labels=NAME`` names; for
    several splits with ``train_``, ``test_`` and so on before that.

    Raises:
        RequestError: arrays are not there; the message lists what is.
        DatasetError: it is no archive of plain arrays, or their form cannot be used.
    """
    argument.require_fields("images", "labels", "classes")
    path = argument.file()
    try:
        archive = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):  # numpy takes it for a pickle, and advises to load it as one
        raise DatasetError(f"{path} cannot be read as NumPy's npz (it is no archive of arrays)") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} cannot be read as NumPy's npz ({error})") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DatasetError(f"{path} is a single array; save images and labels together with numpy.savez")
    with archive:
        names = list(archive.files)
        splits, unread = _splits(names, argument, options)
        parts = [_part(archive, path, names, split, argument, options) for split in splits]
    return ArrayCollection("npz", path.stem, parts, options.target, argument.names("classes"), unread)


def _splits(names: Sequence[str], argument: Argument, options: DatasetOptions) -> tuple[list[str], list[str]]:
    images = [argument.fields["images"]] if "images" in argument.fields else IMAGES
    if any(name in names for name in images):
        return [""], []
    found = [name.rpartition("_")[0] for name in names if "_" in name and name.rpartition("_")[2] in images]
    wanted = [split for split in options.own_splits if split in found]
    return wanted or [""], [split for split in found if split not in options.own_splits]


def _part(
    archive: Any, path: Path, names: Sequence[str], split: str, argument: Argument, options: DatasetOptions
) -> ArrayPart:
    prefix = f"{split}_" if split else ""

    def read(field: str, usual: Sequence[str]) -> tuple[str, Array]:
        choices = [argument.fields[field]] if field in argument.fields else usual
        name = next((prefix + one for one in choices if prefix + one in names), None)
        if name is None:
            raise RequestError(
                f"{path} has no array {prefix}{choices[0]}; it has {', '.join(names) or 'none'}: name them as in "
                "npz:FILE?images=x&labels=y"
            )
        try:
            return name, archive[name]
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{path}: array {name} cannot be read ({error})") from None

    name, images = read("images", IMAGES)
    columns = (
        {options.group_by: read_column(archive, path, prefix + options.group_by)} if options.group_by else {}
    )
    return ArrayPart(split, images, read("labels", LABELS)[1], f"{path}: {name}", columns=columns)


def read_column(archive: Any, path: Path, name: str) -> list[Any]:
    """One further column of an archive.

    Raises:
        RequestError: it is not there.
    """
    if name not in archive.files:
        raise RequestError(f"{path} has no array {name}; it has {', '.join(archive.files)}")
    values: list[Any] = archive[name].ravel().tolist()
    return values
