"""A batch of images on its way from the decoding processes to the backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows that are written together; those that are decoded make one forward pass. They never straddle a block."""

    split: str
    start: int
    stop: int
    decoded: tuple[int, ...] | None = None
    """The rows that are decoded, ascending; None for all. The features of the others are known from another cache."""

    @property
    def numbers(self) -> Sequence[int]:
        """The rows that are decoded, ascending."""
        return range(self.start, self.stop) if self.decoded is None else self.decoded


class ImageBatch(NamedTuple):
    """The images of one forward pass, with what decoding showed of them."""

    images: Tensor
    """``[B, 3, S, S]``: uint8 where `EightBitTransform` prepared them and they are not normalized yet, else float32. An image
    that failed is zeros, so that the other rows keep their places."""
    content: Tensor
    """``[B, 16]`` uint8: beginning of the SHA-256 of every decoded image, for telling the same image again."""
    failures: list[tuple[int, str]]
    """Row of the batch and message of every image that could not be decoded."""
    facts: Tensor
    """``[B, len(FACTS)]`` int64: facts found while decoding each image; zeros for images that failed."""
    unavailable: list[str]
    """Messages of images whose files are gone or cannot be read; these images count as failures too."""

    def select(self, places: Sequence[int]) -> "ImageBatch":
        """Return the batch of some of its images, by their places in it, ascending."""
        if len(places) == len(self.images):
            return self
        index, kept = (
            torch.tensor(places, dtype=torch.int64),
            {place: row for row, place in enumerate(places)},
        )
        return self._replace(
            images=self.images[index.to(self.images.device)],
            content=self.content[index],
            failures=[(kept[place], message) for place, message in self.failures if place in kept],
            facts=self.facts[index],
        )
