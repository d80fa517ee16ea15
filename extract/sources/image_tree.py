"""Walk the image files below a folder: choose samples, count the files passed over, and refuse unsafe entries.

This module handles everything that a walk can meet: hidden and system folders, links that lead back, pipes and devices
named like images, names that are not UTF-8, and folders that cannot be read or that vanish.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from featcache.extraction.sources.image_formats import EXTENSIONS
from featcache.store.errors import DatasetError
from featcache.store.files import is_folder_entry

MAX_DEPTH = 32
SYSTEM_FOLDERS = frozenset(
    (
        "__macosx",
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    )
)
"""Folders, in lower case, that file servers and archivers add; they hold thumbnails, never samples."""
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "icon\r"))
_FORMS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_Identity = tuple[int, int]


def refuse_irregular(mode: int, path: object) -> None:
    """Refuse anything but a regular file: reading a pipe waits forever, and a device may have no end.

    Args:
        mode: ``st_mode`` of the file.
        path: names the file in the error.

    Raises:
        DatasetError: the file is a pipe, a socket, a device or a folder.
    """
    if not stat.S_ISREG(mode):
        form = _FORMS.get(stat.S_IFMT(mode), "no file")
        raise DatasetError(f"{path} is {form}, not a regular file; remove it")


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden, or is one of those that operating systems and file servers add."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS or name.casefold() in _SYSTEM_FILES


class ImageTree:
    """A folder whose image files are listed.

    Args:
        root: the folder; returned paths are relative to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.passed_over: Counter[str] = Counter()
        """Number of files that `images` left out, by extension."""

    def folders(self, relative: str = "") -> list[str]:
        """Return the names of the folders directly below one, sorted, without hidden and system folders.

        Raises:
            DatasetError: the folder cannot be read, or holds a link to a missing folder.
        """
        names = []
        for entry in self._scan(relative):
            if is_system_name(entry.name):
                continue
            if is_folder_entry(entry):
                names.append(entry.name)
            elif not os.path.splitext(entry.name)[1]:
                _refuse_broken_link(entry)
        return sorted(names)

    def loose_images(self, relative: str = "") -> list[str]:
        """Return the names of the images that lie directly in a folder, sorted.

        Raises:
            DatasetError: the folder cannot be read.
        """
        return sorted(
            entry.name
            for entry in self._scan(relative)
            if _is_image(entry.name) and not is_system_name(entry.name) and not is_folder_entry(entry)
        )

    def images(self, relative: str) -> list[tuple[str, int]]:
        """Return path relative to the root, with forward slashes, and bytes of every image below a folder, sorted by path.

        Raises:
            DatasetError: a folder or file cannot be read, is no regular file, has a name that is not UTF-8, or a folder
                links back to one above it.
        """
        return sorted(self._below(relative, ()))

    def _below(self, relative: str, above: tuple[_Identity, ...]) -> Iterator[tuple[str, int]]:
        above = (*above, self._identity(relative, above))
        for entry in self._scan(relative):
            name = entry.name
            path = f"{relative}/{name}".lstrip("/")
            if is_system_name(name):
                if _is_image(name) and not name.startswith("._"):
                    self.passed_over["hidden files"] += 1
            elif is_folder_entry(entry):
                if path.count("/") > MAX_DEPTH:
                    raise DatasetError(
                        f"{self.root / relative} lies {MAX_DEPTH} folders deep; does a folder link to itself?"
                    )
                yield from self._below(path, above)
            elif _is_image(name):
                yield self._checked(path), _size(entry)
            else:
                _refuse_broken_link(entry)
                self.passed_over[os.path.splitext(name)[1].lower() or "no extension"] += 1

    def _identity(self, relative: str, above: tuple[_Identity, ...]) -> _Identity:
        try:
            state = os.stat(self.root / relative)
        except OSError as error:
            raise _unreadable(self.root / relative, error) from None
        if (state.st_dev, state.st_ino) in above:
            raise DatasetError(f"{self.root / relative} links to a folder above it; remove the link")
        return state.st_dev, state.st_ino

    def _checked(self, path: str) -> str:
        try:
            path.encode()
        except UnicodeEncodeError:
            folder, _, _ = path.rpartition("/")
            raise DatasetError(
                f"{self.root / folder}: the file name {path!r} is not valid UTF-8; rename the file"
            ) from None
        return path

    def _scan(self, relative: str) -> Iterator[os.DirEntry[str]]:
        folder = self.root / relative
        try:
            with os.scandir(folder) as entries:
                yield from entries
        except OSError as error:
            raise _unreadable(folder, error) from None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _refuse_broken_link(entry: os.DirEntry[str]) -> None:
    """Refuse a broken link that may have led to a folder, since a whole class would be missing."""
    if entry.is_symlink() and not os.path.splitext(entry.name)[1] and not os.path.exists(entry.path):
        raise DatasetError(
            f"{entry.path} is a link to something that is not there; restore it, or remove the link"
        )


def _size(entry: os.DirEntry[str]) -> int:
    try:
        state = entry.stat()
    except OSError as error:  # usually a link whose content was never fetched
        raise DatasetError(
            f"{entry.path} cannot be read ({error.strerror}); restore the file or remove it"
        ) from None
    refuse_irregular(state.st_mode, entry.path)
    return state.st_size


def _unreadable(folder: Path, error: OSError) -> DatasetError:
    return DatasetError(
        f"folder {folder} cannot be read ({error.strerror}); is it there, and may you read it?"
    )
