"""A folder of images: ``DIR/<class>/...``, or ``DIR/train/<class>/...`` and ``DIR/test/<class>/...``.

Images that lie in no class folder at all, or any images with ``--target none``, have no labels.
"""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featcache.extraction.sources.argument import Argument
from featcache.extraction.sources.base import Rows
from featcache.extraction.sources.collection import (
    NO_TARGETS,
    Collection,
    Listing,
    listing_digest,
    unlabeled_note,
)
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.decode import decode
from featcache.extraction.sources.image_tree import ImageTree
from featcache.extraction.sources.samples import Texts
from featcache.extraction.sources.split_names import (
    TEST,
    TRAIN,
    VALIDATION,
    ChosenSplits,
    choose_splits,
    note_splits_beside,
    role_of,
    roles_of,
)
from featcache.store.errors import DatasetError, RequestError
from featcache.store.progress import Reporter
from featcache.store.requests import AUTO
from featcache.store.targets import SINGLE_LABEL, UNLABELED, Targets
from featcache.store.text import encodable

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS_FIELD, NO_SPLITS = "splits", "none"
_LOOKED_INTO = 3
"""Number of class folders that are searched for splits below them; all have the same layout."""
_WHOLE_WORD_LETTERS = 4
"""Shortest name of a split folder; ``tr`` and ``te`` are as often names of classes, such as languages."""


class ImageFolder(Collection):
    """A folder with one folder of images per class, or several such folders by split.

    Files without the extension of an image are passed over and counted, as are hidden files and system folders. Names
    and sizes stay in memory, a few dozen bytes per file.

    Args:
        directory: the dataset's folder.
        options: its splits to read, if it has any.
        own_splits: whether folders named like splits may be splits; else every folder is a class.

    Raises:
        RequestError: the folder does not exist.
        DatasetError: a class has no images, a split has a class that train lacks, or the role of a folder is ambiguous.
    """

    source_type = "imagefolder"

    def __init__(
        self, directory: Path, options: DatasetOptions | None = None, *, own_splits: bool = True
    ) -> None:
        if not os.path.isdir(directory):
            raise RequestError(f"image folder {directory!s:.300} does not exist or is not a folder")
        self._directory = directory.resolve()
        self.name = self._directory.name
        self._tree = ImageTree(self._directory)
        self._notes: list[str] = []
        self._encoded: list[bytes] = []
        self._sizes: list[Rows] = []
        self._lengths: list[Rows] = []
        self._labels: list[Rows] = []
        options = options or DatasetOptions()
        self._without_labels = options.target == UNLABELED
        chosen = self._choose(options) if own_splits else ChosenSplits()
        splits = chosen.names or {"": ""}
        self._without_labels = self._without_labels or self._are_plainly_unlabeled(splits.values(), options)
        read = self._read_unlabeled if self._without_labels else self._read_classes
        targets, counts = read(splits)
        ends = np.cumsum(list(counts.values()))
        parts = {
            split: np.arange(end - count, end)
            for (split, count), end in zip(counts.items(), ends, strict=True)
        }
        ids = Texts(b"".join(self._encoded), np.cumsum(np.concatenate(self._lengths)))
        labels, sizes = np.concatenate(self._labels), np.concatenate(self._sizes)
        del self._encoded, self._sizes, self._lengths, self._labels
        self.listing = Listing(
            ids,
            labels,
            targets,
            listing_digest(targets.names, ids, sizes.tolist(), labels),
            parts if chosen.names else {},
            chosen.unread,
            notes=self._notes,
            passed_over=dict(self._tree.passed_over),
        )

    one_file_a_row = True

    def files(self, rows: Sequence[int]) -> Iterable[str | Path]:
        """Return the file of each of `rows`."""
        return (f"{self._directory}/{self.listing.ids[row]}" for row in rows)

    def image(self, row: int) -> "Image":
        """Decode one image."""
        path = self._directory / self.listing.ids[row]
        return decode(path, path)

    def _read_classes(self, splits: Mapping[str, str]) -> tuple[Targets, dict[str, int]]:
        """Take over the files of all splits, class by class; return the targets, and the number of samples by split."""
        names = {split: self._class_folders(folder) for split, folder in splits.items()}
        classes = tuple(next(iter(names.values())))
        self._refuse_unknown_classes(names, splits)
        if len(classes) == 1:
            self._note_folders_of_one_class(next(iter(splits.values())), classes[0])
        counts = {split: self._read(folder, names[split], classes) for split, folder in splits.items()}
        return Targets(SINGLE_LABEL, classes), counts

    def _read_unlabeled(self, splits: Mapping[str, str]) -> tuple[Targets, dict[str, int]]:
        """Take over all images below the folder of each split, without labels; return as `_read_classes`."""
        counts, beside = {}, [] if "" in splits.values() else self._tree.loose_images()
        if beside:
            self._tree.passed_over["images beside the folders of the splits"] += len(beside)
        for split, folder in splits.items():
            files = self._tree.images(folder)
            if not files:
                raise DatasetError(f"{self._directory / folder} holds no images; is it the right folder?")
            self._take(files, 0)
            counts[split] = len(files)
        return NO_TARGETS, counts

    def _are_plainly_unlabeled(self, folders: Iterable[str], options: DatasetOptions) -> bool:
        """Return whether all images lie beside each other, with no folder or table that could hold their labels; add a note."""
        if options.target not in (AUTO, UNLABELED) or self._tables():
            return False
        if any(self._tree.folders(folder) or not self._tree.loose_images(folder) for folder in folders):
            return False
        self._notes.append(unlabeled_note(self.name))
        return True

    def _tables(self) -> list[Path]:
        """Return the tables beside the images, which may hold their labels."""
        return sorted((*self._directory.glob("*.csv"), *self._directory.glob("*.tsv")))

    def _choose(self, options: DatasetOptions) -> ChosenSplits:
        """Return the folders that are splits, and the ones to read; none if folders are classes."""
        folders = self._tree.folders()
        roles = roles_of(folders)
        called = [name for name in folders if roles[name]]
        asked = bool(options.train_split or options.test_splits)
        if not asked and not self._are_splits(called, folders, roles):
            if self._without_labels:
                self._notes += note_splits_beside(self._directory)
                return ChosenSplits()
            self._refuse_splits_below(folders)
            if called:
                self._notes.append(
                    f"{', '.join(called)} of {self.name}: taken for classes, since there are other classes beside and no "
                    "train/ and test/ with class folders"
                )
            self._notes += note_splits_beside(self._directory)
            return ChosenSplits()
        if not asked and not options.resplit:
            for role in (TRAIN, TEST):
                if role not in roles.values():
                    raise DatasetError(self._missing_class_message(role, folders, roles))
        # Other folders (docs/, meta/) are not merged with the splits.
        split_folders = [name for name in folders if roles[name] or asked or not options.resplit]
        chosen = choose_splits(split_folders, options, str(self._directory))
        self._notes += chosen.notes(self.name)
        read = chosen.names.values()
        return ChosenSplits(chosen.names, tuple(encodable(name) for name in folders if name not in read))

    def _refuse_splits_below(self, folders: Sequence[str]) -> None:
        """Refuse ``DIR/<class>/train/...``, and a folder above the dataset's, since their splits would be merged."""
        for name in folders[:_LOOKED_INTO]:
            below = self._tree.folders(name)
            roles = set(roles_of(below).values())
            if TRAIN in roles and roles & {TEST, VALIDATION}:
                hint = f"or is imagefolder:{self._directory / name} meant? " if len(folders) == 1 else ""
                raise DatasetError(
                    f"{self._directory / name} has folders {', '.join(below[:5])}, which are called like splits; splits must "
                    f"lie above the classes (train/{name}/...); {hint}imagefolder:DIR?{SPLITS_FIELD}={NO_SPLITS} reads them as "
                    "parts of one class"
                )

    def _note_folders_of_one_class(self, folder: str, name: str) -> None:
        """Note that the folders inside the only class folder, of the dataset or of its first split, may be the classes."""
        inside = f"{folder}/{name}".lstrip("/")
        below = self._tree.folders(inside)
        if len(below) > 1 and not self._tree.loose_images(inside):
            shown = ", ".join(map(encodable, below[:3]))
            advice = f"they must lie in {folder}/ itself" if folder else f"name imagefolder:.../{name}"
            self._notes.append(
                f"{self.name} has the one class {name}, whose images lie in folders ({shown}, ...); if these are the classes, "
                f"{advice}"
            )

    def _are_splits(
        self, called: Sequence[str], folders: Sequence[str], roles: Mapping[str, str | None]
    ) -> bool:
        """Return whether folders named like splits are splits: a class folder holds no folders of classes."""
        if not called or len(called) == len(folders):
            return bool(called)
        return any(
            roles[name] in (TRAIN, TEST) and len(name) >= _WHOLE_WORD_LETTERS and self._tree.folders(name)
            for name in called
        )

    def _missing_class_message(
        self, role: str, folders: Sequence[str], roles: Mapping[str, str | None]
    ) -> str:
        others = [name for name in folders if not roles[name]]
        validation = [name for name in folders if roles[name] == VALIDATION]
        if role == TEST and validation:
            hint = f"; --test-split {validation[0]} tests on {validation[0]}/, and --resplit splits anew"
        elif others:
            hint = (
                f"; or name splits with --train-split and --test-split: {', '.join(map(encodable, others[:20]))}"
                f"; or read every folder as a class with imagefolder:DIR?{SPLITS_FIELD}={NO_SPLITS}"
            )
        else:
            hint = "; or split it anew with --resplit"
        return (
            f"{self._directory} has no {role}/ folder; it needs both {TRAIN}/ and {TEST}/, or neither{hint}"
        )

    def _refuse_unknown_classes(self, names: Mapping[str, list[str]], splits: Mapping[str, str]) -> None:
        train, *others = names
        known = {_composed(name) for name in names[train]}
        for split in others:
            there = {_composed(name) for name in names[split]}
            unknown = [name for name in names[split] if _composed(name) not in known]
            if unknown:
                lacking = [name for name in names[train] if _composed(name) not in there]
                train_folder, split_folder = splits[train], splits[split]
                raise DatasetError(
                    f"{self._directory}: {split_folder} has classes that {train_folder} lacks: {', '.join(unknown[:10])}"
                    + (
                        f" ({train_folder} has, and {split_folder} lacks: {', '.join(lacking[:10])})"
                        if lacking
                        else ""
                    )
                    + f"; class folders must have the same names in {train_folder}/ and {split_folder}/"
                )

    def _class_folders(self, folder: str) -> list[str]:
        names, loose = self._tree.folders(folder), self._tree.loose_images(folder)
        where = self._directory / folder
        if not names:
            hint = self._unlabeled(folder, len(loose)) if loose else ""
            raise DatasetError(f"{where} has no class folders; it needs one folder of images per class{hint}")
        if loose:
            self._tree.passed_over["images beside the class folders"] += len(loose)
            self._notes.append(
                f"{len(loose)} images lie beside the class folders of {where} and are not read: {', '.join(loose[:3])}"
                + (", ..." if len(loose) > 3 else "")
            )
        for name in names:
            if encodable(name) != name:
                raise DatasetError(f"{where}: the folder name {name!r} is not valid UTF-8; rename the folder")
        if len({_composed(name) for name in names}) < len(names):
            twins = [
                name for name in names if [_composed(other) for other in names].count(_composed(name)) > 1
            ]
            raise DatasetError(
                f"{where}: class folders look the same and differ in the Unicode form of their names: "
                f"{', '.join(map(ascii, twins[:4]))}; rename or merge them"
            )
        return names

    def _unlabeled(self, folder: str, count: int) -> str:
        """Suggest what to do with images outside of class folders, directly in the folder of the dataset or of a split."""
        about = f"; its {count} images have no label"
        tables = self._tables()
        named = next((table for table in tables if table.stem == folder), tables[0] if tables else None)
        if named is not None:
            return (
                f"{about}; if {named.name} has them, name csv:{named}?root={self._directory / folder}; to have features without "
                f"labels, give --target {UNLABELED}"
            )
        if folder and role_of(folder) != TRAIN:
            others = [name for name in self._tree.folders() if role_of(name) in (TEST, VALIDATION)]
            labeled = next((name for name in others if self._tree.folders(name)), None)
            if labeled is not None:
                return f"{about}: test on another split with --test-split {labeled}"
            train = next((name for name in self._tree.folders() if role_of(name) == TRAIN), TRAIN)
            return f"{about}: to leave them out, name imagefolder:{self._directory / train}"
        return f"{about}: to have features without labels, give --target {UNLABELED}"

    def _read(self, folder: str, names: Sequence[str], classes: Sequence[str]) -> int:
        """Take over the files of one split, classes and files in sorted order; returns how many."""
        labels = {_composed(name): label for label, name in enumerate(classes)}
        empty, total = [], 0
        for name in names:
            before = self._tree.passed_over.copy()
            files = self._tree.images(f"{folder}/{name}".lstrip("/"))
            if not files:
                left = self._tree.passed_over - before
                counts = ", ".join(f"{count} {extension}" for extension, count in left.most_common(3))
                empty.append(f"{name} ({counts})" if counts else name)
            # One class at a time: a million strings take far more memory than their bytes.
            self._take(files, labels[_composed(name)])
            total += len(files)
        if empty:
            raise DatasetError(
                f"{self._directory / folder}: no images in class folder {', '.join(empty[:10])}; add images or remove "
                "the folder"
            )
        return total

    def _take(self, files: Sequence[tuple[str, int]], label: int) -> None:
        """Take over path and size of some files that have one label."""
        encoded = [path.encode() for path, _ in files]
        self._encoded.append(b"".join(encoded))
        self._lengths.append(np.array([len(text) for text in encoded], np.int64))
        self._sizes.append(np.array([size for _, size in files], np.int64))
        self._labels.append(np.full(len(files), label, np.int64))


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form, since macOS and some archives decompose letters."""
    return unicodedata.normalize("NFC", name)


def open_folder(argument: Argument, options: DatasetOptions, reporter: Reporter) -> ImageFolder:
    """Open a folder as a dataset; with ``?splits=none`` every folder is a class, whatever its name; see `ImageFolder`.

    Raises:
        RequestError: a field is unknown.
    """
    argument.require_fields(SPLITS_FIELD)
    named = argument.fields.get(SPLITS_FIELD)
    if named not in (None, NO_SPLITS):
        raise RequestError(f"{SPLITS_FIELD} of imagefolder must be {NO_SPLITS}, got {named!r}")
    return ImageFolder(argument.path, options, own_splits=named is None)
