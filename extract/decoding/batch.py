"""A batch of images on its way from the decoding processes to the backbone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
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
    views: Mapping[str, Tensor] = MappingProxyType({})
    """The same images in other views, by name, each ``[B, 3, S, S]`` with an S of its own. Where the plain view is not wanted, the
    sides of `images` are 0."""

    def select(self, places: Sequence[int]) -> "ImageBatch":
        """Return the batch of some of its images, by their places in it, ascending."""
        if len(places) == len(self.images):
            return self
        index = torch.tensor(places, dtype=torch.int64)
        kept = {place: row for row, place in enumerate(places)}
        return self.map_images(lambda images: images[index.to(images.device)])._replace(
            content=self.content[index],
            failures=[(kept[place], message) for place, message in self.failures if place in kept],
            facts=self.facts[index],
        )

    @property
    def by_view(self) -> dict[str, Tensor]:
        """The images of every view that is wanted, by name; the plain one has an empty name."""
        plain = {"": self.images} if self.images.shape[-1] else {}
        return {**plain, **self.views}

    def map_images(self, change: Callable[[Tensor], Tensor]) -> "ImageBatch":
        """Return the batch with `change` applied to the images of every view."""
        return self._replace(
            images=change(self.images), views={name: change(images) for name, images in self.views.items()}
        )
