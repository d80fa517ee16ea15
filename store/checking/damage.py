"""Damage of one file of a cache, and the part of the data that it concerns."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject
from featcache.store.inventory import Block
from featcache.store.text import printable

MAX_REASON = 1000


class FileRole(StrEnum):
    """Role of a file, which decides how a repair treats it."""

    MANIFEST = "manifest"
    """Manifest, or the plan of an unfinished cache: nothing can be repaired without."""
    DATA = "data"
    """A chunk file: its block is extracted again."""
    METADATA = "metadata"
    """A zarr.json: written again by the next extraction."""
    DOCUMENT = "document"
    """Provenance or card: written again by the next extraction."""
    REQUEST = "request"
    """request.json or origin.json; no data depends on them, so damaged ones are dropped."""
    FORM = "form"
    """A document whose content holds but whose bytes are not as written: written again."""
    STALE = "leftover"
    """A file left by a killed process: removed."""
    LINK = "link"
    """A link in the place of a folder: nothing behind it is read or removed."""
    UNEXPECTED = "stranger"
    """A file that is not ours: left where it is."""


@dataclass(frozen=True)
class FileLocation:
    """One file, and for features.zarr what it holds."""

    path: str
    """Relative to the folder of the cache."""
    role: FileRole
    block: Block | None = None
    """The rows of a chunk file."""
    array: str | None = None
    layer: str | None = None

    @property
    def printable_path(self) -> str:
        """The path as it can be printed."""
        return printable(self.path)

    def __str__(self) -> str:
        if self.block is None:
            return self.printable_path
        content = f"layer {self.layer}" if self.layer else self.array
        return (
            f"{self.printable_path} ({self.block.split} rows {self.block.start}-{self.block.stop}, {content})"
        )


@dataclass(frozen=True)
class Damage:
    """One file that is not as it was written."""

    location: FileLocation
    reason: str

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}"

    def to_dict(self) -> JsonObject:
        """Return the damage as plain JSON values; ``rows`` are start and stop, the stop not included."""
        block = self.location.block
        return {
            "file": self.location.printable_path,
            "reason": self.reason,
            "kind": str(self.location.role),
            "split": block.split if block else None,
            "rows": [block.start, block.stop] if block else None,
            "array": self.location.array,
            "layer": self.location.layer,
        }


def reason(path: Path, error: CacheError | OSError) -> str:
    """Say what is wrong with the file at `path`, in about `MAX_REASON` characters: a forged name may be endless."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    text = str(error).removeprefix(f"{path}: ")
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON // 2]} ... {text[-MAX_REASON // 2 :]}"
