"""A folder of images: ``DIR/<class>/...`` split 75/25 by class, or ``DIR/train/<class>/...`` and ``DIR/test/<class>/...``."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.extract.sources.base import Sample
from featcache.extract.sources.splits import split_by_class, stratified_part
from featcache.store.errors import DatasetError, RequestError
from featcache.store.inventory import SPLITS

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2")
)

MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    """Relative to the dataset's folder, with forward slashes."""
    size: int


class ImageFolder:
    """A folder with one folder of images per class.

    Files that are not images by their extension, and hidden ones, are passed over.

    Args:
        directory: the dataset's folder.
        split_seed: seed of the 75/25 split where there are no ``train/`` and ``test/``.
        limit: at most this many samples of each split, stratified by class.

    Raises:
        RequestError: the folder does not exist, or `limit` is smaller than the number of classes.
        DatasetError: a class has no images, or test has a class that train lacks.
    """

    def __init__(self, directory: Path, split_seed: int = 0, limit: int | None = None) -> None:
        if not directory.is_dir():
            raise RequestError(f"image folder {directory} does not exist or is not a folder")
        self._directory = directory.resolve()
        self.name = self._directory.name
        self._sizes: dict[str, int] = {}
        self.class_names: Sequence[str]
        self.splits: Mapping[str, Sequence[Sample]]
        own_splits = any((directory / split).is_dir() for split in SPLITS)
        if own_splits:
            self._read_splits()
        else:
            self._read_and_split(split_seed)
        digest = self._digest
        if limit is not None and all(len(part) <= limit for part in self.splits.values()):
            limit = None  # it cuts nothing, so it must not change the identity
        if limit is not None:
            self.splits = {
                name: stratified_part(part, limit, split_seed) for name, part in self.splits.items()
            }
        self.identity: Mapping[str, Any] = {
            "kind": "imagefolder",
            "digest": digest,
            "split_seed": None if own_splits else split_seed,
            # The part that a limit takes is chosen by the seed too.
            "limit": None if limit is None else [limit, split_seed],
        }

    def image(self, split: str, row: int) -> "Image":
        """Decode one image; see `Source.image`."""
        from PIL import Image

        path = self._directory / self.splits[split][row].id
        try:
            with Image.open(path) as image:
                image.load()
                return image
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).replace(f"'{path}'", "it").splitlines()
            raise DatasetError(
                f"image {path} does not decode ({reason[0] if reason else type(error).__name__})"
            ) from None

    def _read_splits(self) -> None:
        for split in SPLITS:
            if not (self._directory / split).is_dir():
                others = [
                    name for name in ("val", "valid", "validation") if (self._directory / name).is_dir()
                ]
                hint = f" (rename or link {others[0]}/ to test/)" if others else ""
                raise DatasetError(
                    f"{self._directory} has no {split}/ folder; it needs both train/ and test/, or neither{hint}"
                )
        classes = {split: self._classes(split) for split in SPLITS}
        self.class_names = tuple(classes["train"])
        unknown = [name for name in classes["test"] if name not in classes["train"]]
        if unknown:
            lacking = [name for name in classes["train"] if name not in classes["test"]]
            raise DatasetError(
                f"{self._directory}: test has classes that train lacks: {', '.join(unknown[:10])}"
                + (f" (train has, and test lacks: {', '.join(lacking[:10])})" if lacking else "")
                + "; class folders must have the same names in train/ and test/"
            )
        self.splits = {split: self._samples(classes[split]) for split in SPLITS}

    def _read_and_split(self, split_seed: int) -> None:
        classes = self._classes("")
        self.class_names = tuple(classes)
        train, test = split_by_class(self._samples(classes), self.class_names, split_seed)
        self.splits = {"train": train, "test": test}

    def _classes(self, folder: str) -> dict[str, list[_File]]:
        """Files of every class below `folder`, classes and files in sorted order."""
        root = self._directory / folder
        names = sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
        )
        if not names:
            raise DatasetError(f"{root} has no class folders; it needs one folder of images per class")
        classes = {
            name: sorted(_images(root / name, f"{folder}/{name}".lstrip("/")), key=lambda f: f.path)
            for name in names
        }
        empty = [name for name, files in classes.items() if not files]
        if empty:
            raise DatasetError(
                f"{root}: no images in class folder {', '.join(empty[:10])}; add images or remove the folder"
            )
        return classes

    def _samples(self, classes: Mapping[str, Iterable[_File]]) -> list[Sample]:
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._sizes.update((file.path, file.size) for files in classes.values() for file in files)
        return [Sample(file.path, labels[name]) for name, files in classes.items() for file in files]

    @property
    def _digest(self) -> str:
        """SHA-256 over the sorted list of (relative path, size, label) of all files."""
        digest = hashlib.sha256("\0".join(self.class_names).encode() + b"\n")
        for sample in sorted(
            (s for part in self.splits.values() for s in part), key=lambda sample: sample.id
        ):
            digest.update(f"{sample.id}\0{self._sizes[sample.id]}\0{sample.label}\n".encode())
        return digest.hexdigest()


def _images(directory: Path, relative: str) -> Iterator[_File]:
    with os.scandir(directory) as entries:
        for entry in entries:
            path = f"{relative}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if path.count("/") > MAX_DEPTH:
                    raise DatasetError(
                        f"{directory} lies {MAX_DEPTH} folders deep; does a folder link to itself?"
                    )
                yield from _images(directory / entry.name, path)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield _File(_utf8(path, directory), _size(entry))


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
