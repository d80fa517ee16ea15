"""A batch of images on its way from the decoding processes to the backbone."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of one forward pass: they never straddle a block."""

    split: str
    start: int
    stop: int


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
