"""A folder of images: ``DIR/<class>/...``, or ``DIR/train/<class>/...`` and ``DIR/test/<class>/...``."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.extract.sources.argument import Argument
from featcache.extract.sources.base import Rows
from featcache.extract.sources.collection import Collection, Listing, listing_digest
from featcache.extract.sources.dataset import DatasetOptions
from featcache.extract.sources.decode import EXTENSIONS, decode
from featcache.extract.sources.samples import Texts
from featcache.store.errors import DatasetError, RequestError
from featcache.store.inventory import SPLITS
from featcache.store.progress import Reporter
from featcache.store.targets import SINGLE_LABEL, Targets

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_DEPTH = 32


class ImageFolder(Collection):
    """A folder with one folder of images per class.

    Files that are not images by their extension, and hidden ones, are passed over. Names and sizes are kept, a few dozen
    bytes a file.

    Args:
        directory: the dataset's folder.
        wanted: its splits to read, if it has ``train/`` or ``test/``.

    Raises:
        RequestError: the folder does not exist.
        DatasetError: a class has no images, or a split has a class that train lacks.
    """

    kind = "imagefolder"

    def __init__(self, directory: Path, wanted: Sequence[str] = SPLITS) -> None:
        if not directory.is_dir():
            raise RequestError(f"image folder {directory} does not exist or is not a folder")
        self._directory = directory.resolve()
        self.name = self._directory.name
        self._ids: list[bytes] = []
        self._sizes: list[Rows] = []
        self._lengths: list[Rows] = []
        self._labels: list[Rows] = []
        own = any((directory / split).is_dir() for split in SPLITS)
        splits = self._require_splits(wanted) if own else [""]
        names = {split: self._class_folders(split) for split in splits}
        classes = tuple(names[splits[0]])
        if own:
            self._refuse_unknown_classes(names)
        parts, start = {}, 0
        for split in splits:
            count = self._read(split, names[split], classes)
            parts[split] = np.arange(start, start + count)
            start += count
        lengths = np.concatenate(self._lengths)
        ids = Texts(b"".join(self._ids), np.cumsum(lengths))
        labels, sizes = np.concatenate(self._labels), np.concatenate(self._sizes)
        del self._ids, self._sizes, self._lengths, self._labels
        digest = listing_digest(classes, ids, sizes.tolist(), labels)
        unread = self._others(splits) if own else ()
        self.listing = Listing(
            ids, labels, Targets(SINGLE_LABEL, classes), digest, parts if own else {}, unread
        )

    def image(self, row: int) -> "Image":
        """Decode one image."""
        path = self._directory / self.listing.ids[row]
        return decode(path, path)

    def _require_splits(self, wanted: Sequence[str]) -> list[str]:
        for split in wanted:
            if not (self._directory / split).is_dir():
                others = self._others(wanted)
                hint = f"; or name one with --test-split: {', '.join(others)}" if others else ""
                needed = " and ".join(f"{name}/" for name in wanted)
                raise DatasetError(
                    f"{self._directory} has no {split}/ folder; it needs both {needed}, or neither{hint}"
                )
        return list(wanted)

    def _others(self, splits: Sequence[str]) -> list[str]:
        return [name for name in self._folders("") if name not in splits]

    def _refuse_unknown_classes(self, names: dict[str, list[str]]) -> None:
        train, *others = names
        for split in others:
            unknown = [name for name in names[split] if name not in names[train]]
            if unknown:
                lacking = [name for name in names[train] if name not in names[split]]
                raise DatasetError(
                    f"{self._directory}: {split} has classes that {train} lacks: {', '.join(unknown[:10])}"
                    + (f" ({train} has, and {split} lacks: {', '.join(lacking[:10])})" if lacking else "")
                    + f"; class folders must have the same names in {train}/ and {split}/"
                )

    def _folders(self, folder: str) -> list[str]:
        with os.scandir(self._directory / folder) as entries:
            return sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
            )

    def _class_folders(self, split: str) -> list[str]:
        names = self._folders(split)
        if not names:
            raise DatasetError(
                f"{self._directory / split} has no class folders; it needs one folder of images per class"
            )
        return names

    def _read(self, split: str, names: Sequence[str], classes: Sequence[str]) -> int:
        """Take over the files of one split, classes and files in sorted order; returns how many."""
        labels = {name: label for label, name in enumerate(classes)}
        root, empty, total = self._directory / split, [], 0
        for name in names:
            files = sorted(_images(root / name, f"{split}/{name}".lstrip("/")))
            if not files:
                empty.append(name)
            encoded = [path.encode() for path, _ in files]
            # One class at a time: a million strings take far more memory than their bytes.
            self._ids.append(b"".join(encoded))
            self._lengths.append(np.array([len(one) for one in encoded], np.int64))
            self._sizes.append(np.array([size for _, size in files], np.int64))
            self._labels.append(np.full(len(files), labels[name], np.int64))
            total += len(files)
        if empty:
            raise DatasetError(
                f"{root}: no images in class folder {', '.join(empty[:10])}; add images or remove the folder"
            )
        return total


def _images(directory: Path, relative: str) -> Iterator[tuple[str, int]]:
    """Path relative to the dataset's folder, with forward slashes, and size of every image below `directory`."""
    with os.scandir(directory) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            path = f"{relative}/{name}"
            if entry.is_dir():
                if path.count("/") > MAX_DEPTH:
                    raise DatasetError(
                        f"{directory} lies {MAX_DEPTH} folders deep; does a folder link to itself?"
                    )
                yield from _images(directory / name, path)
            elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield _utf8(path, directory), _size(entry)


def _utf8(path: str, directory: Path) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DatasetError(
            f"{directory}: the file name {path!r} is not valid UTF-8; rename the file"
        ) from None
    return path


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError as error:  # most often a link whose content was never fetched
        raise DatasetError(
            f"{entry.path} cannot be read ({error.strerror}); restore the file or remove it"
        ) from None


def open_folder(argument: Argument, options: DatasetOptions, reporter: Reporter) -> ImageFolder:
    """Open a folder as a dataset; see `ImageFolder`."""
    argument.require_fields()
    return ImageFolder(argument.path, options.own_splits)
