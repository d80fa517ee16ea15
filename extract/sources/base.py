"""Interface of dataset sources: samples known up front, images read by row, an identity made of content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.pixels import RGB_CHANNELS, PixelOptions
from featcache.store.targets import Targets

if TYPE_CHECKING:
    from PIL.Image import Image

    from featcache.extraction.sources.file_states import FileStates

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One labeled sample, without its image."""

    id: str
    """Stable and unique within the dataset, such as a relative path."""
    label: Any
    """Index into the class names; uint8 ``[C]`` or float32 ``[T]`` where targets are of another kind."""


@dataclass(frozen=True)
class Citation:
    """License, citation and homepage of a dataset, as far as they are known."""

    license: str | None = None
    """Name of the license, or the terms in a few words."""
    text: str | None = None
    """Citation text."""
    homepage: str | None = None


class Source(Protocol):
    """A labeled image dataset. It must be picklable: worker processes read images from it."""

    @property
    def name(self) -> str:
        """Name for people and folders, such as ``textile``."""

    @property
    def targets(self) -> Targets:
        """Kind, names and units of the targets."""

    @property
    def splits(self) -> Mapping[str, Sequence[Sample]]:
        """The samples of every split, in row order, the same every time."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity of content, order and split, as JSON values; no absolute paths."""

    def image(self, split: str, row: int) -> "Image":
        """Decode the image of one row, in whatever mode it is stored.

        Raises:
            DatasetError: it does not decode; the message names it.
        """

    def prepare(self, split: str, rows: Sequence[int]) -> None:
        """Prefetch hint: these rows are read next, in this order, so a source may read stored pieces as a whole."""
        return

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the targets, in label order."""
        return self.targets.names

    @property
    def notes(self) -> Sequence[str]:
        """Notes for people who use the dataset, a line each."""
        return ()

    @property
    def pixels(self) -> PixelOptions:
        """Options for reading decoded images."""
        return PixelOptions()

    @property
    def channels(self) -> int:
        """Number of channels that images are given with."""
        return RGB_CHANNELS

    @property
    def may_be_turned(self) -> bool:
        """Whether images may carry an EXIF orientation: those in image files may, arrays of pixels do not."""
        return True

    def count_turned(self, limit: int) -> int | None:
        """Count the images with an EXIF orientation by the headers of their files; None if that is not known.

        Args:
            limit: largest number of files to look into; None is returned for more.
        """
        return None

    def file_states(self) -> "FileStates | None":
        """Return the size and times of the files that images are read from; None if images are not in files."""
        return None

    def row_fingerprints(self) -> "Mapping[str, npt.NDArray[np.uint8]]":
        """Return by split a digest ``[N, 16]`` of id, size, times and inode of the file that holds each row.

        Rows of equal digests have the same image, as far as the file system tells. Zeros stand for a row whose file cannot be
        looked at, and a split without an entry has no files.
        """
        return {}

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Number of files or entries that are not read, by type; see `Listing.passed_over`."""
        return {}

    @property
    def citation(self) -> Citation:
        """License and citation, as far as they are known."""
        return Citation()
