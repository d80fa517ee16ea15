"""The protocol of a dataset source: samples known up front, images read by row, an identity that is content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled sample, without its image."""

    id: str
    """Stable and unique within the dataset, such as a relative path."""
    label: int
    """Index into the class names."""


class Source(Protocol):
    """A labelled image dataset. It must be picklable: worker processes read images from it."""

    @property
    def name(self) -> str:
        """Name for people and folders, such as ``textile``."""

    @property
    def class_names(self) -> Sequence[str]:
        """Name of every class, in label order."""

    @property
    def splits(self) -> Mapping[str, Sequence[Sample]]:
        """The samples of ``train`` and ``test``, in row order, the same every time."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What fixes content, order and split, as JSON values; no absolute paths."""

    def image(self, split: str, row: int) -> "Image":
        """Decode the image of one row, in whatever mode it is stored.

        Raises:
            DatasetError: it does not decode; the message names it.
        """
