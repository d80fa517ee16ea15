"""Look at the first images of a run: a dataset that was stored or read wrongly shows in their pixels before the long pass.

Models expect images that use the values from 0 to 255. Sets that are nearly black (12-bit values in 16 bits, values from 0 to 1,
masks), nearly white, of one color, or the same picture over and over run through without an error, and give features that
tell nothing.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from featcache.extraction.decoding.batch import ImageBatch
from featcache.extraction.sources.pixels import FACTS, PixelRange

LOOKED_AT = 128
"""Number of images that are looked at."""
_MOST = 0.95
"""Part of the images that has to look wrong. Some images of most datasets are blank, or dark."""
_DARK, _BRIGHT, _NARROW, _CONSTANT = 64, 224, 32, 3
"""Bounds on pixels of 8 bits: the largest value of dark images, the smallest of bright ones, and ranges from lowest to
highest. Values of 14 bits that are read as 16 stay below 64."""
_SAME = 8
"""Fewer images may be the same picture by intention."""
_USUAL_RANGES = ((0, 1), (0, 255), (-1, 1))
"""Ranges of images before normalization. Others, such as a window of CT values, cut values off on purpose."""
_CLIPPED, _DEEP = FACTS.index("clipped"), FACTS.index("deep")


class FirstImages:
    """Statistics of the first images of a run.

    Args:
        pixel_range: the range that the dataset is read with, if one was given.
    """

    def __init__(self, pixel_range: PixelRange | None) -> None:
        self._range = pixel_range
        self._lows: list[npt.NDArray[np.uint8]] = []
        self._highs: list[npt.NDArray[np.uint8]] = []
        self._digests: set[bytes] = set()
        self._images = self._clipped = self._deepest = 0

    @property
    def is_complete(self) -> bool:
        """Whether enough images were looked at."""
        return self._images >= LOOKED_AT

    def add(self, batch: ImageBatch) -> None:
        """Look at the images of a batch, before they are normalized."""
        good = np.ones(len(batch.images), np.bool_)
        good[[row for row, _ in batch.failures]] = False
        if not good.any():
            return
        facts = batch.facts.numpy()[good]
        self._images += len(facts)
        self._clipped += int((facts[:, _CLIPPED] > 0).sum())
        self._deepest = max(self._deepest, int(facts[:, _DEEP].max()))
        self._digests |= {row.tobytes() for row in batch.content.numpy()[good]}
        images = next(iter(batch.by_view.values()))  # any view tells
        if images.dtype == torch.uint8:  # other preprocessing gives values of any range
            pixels = images.permute(0, 2, 3, 1).numpy()[good].reshape(len(facts), -1)
            self._lows.append(pixels.min(1))
            self._highs.append(pixels.max(1))

    def warning(self) -> str | None:
        """Return one line on what is far from what models expect, and what to do; None if nothing is."""
        if not self._images:
            return None
        if len(self._digests) == 1 and self._images >= _SAME:
            return f"{self._first()} are all the same picture; check the paths, or the array, that images are read from"
        usual = self._range is not None and (self._range.low, self._range.high) in _USUAL_RANGES
        if usual and self._clipped >= _MOST * self._images:
            return (
                f"{self._first()} have values outside of {self._range_text()}, which become black or white; if they are "
                "normalized already, store them as they were before, or give the values of black and white"
            )
        return self._range_warning() if self._lows else None

    def _range_warning(self) -> str | None:
        lows, highs = (np.concatenate(values).astype(int) for values in (self._lows, self._highs))
        spans = highs - lows
        if _most(highs < _DARK) and highs.any():
            return (
                f"{self._first()} are nearly black: their values reach {highs.max()} of 255, and models expect the whole range; "
                f"{self._remedy()}"
            )
        if _most(spans < _CONSTANT):
            return (
                f"{self._first()} are of one color each, with no picture in them; check how they were stored"
            )
        if _most(lows >= _BRIGHT):
            return (
                f"{self._first()} are nearly white: their values begin at {lows.min()} of 255, and models expect the whole range; "
                f"{self._remedy()}"
            )
        if _most(spans < _NARROW):
            return (
                f"{self._first()} have hardly any contrast: the values of an image span {spans.max()} of 255 at most, and models "
                f"expect the whole range; {self._remedy()}"
            )
        return None

    def _remedy(self) -> str:
        if self._range is not None:
            return f"is {self._range_text()} right for them?"
        if self._deepest:
            bits = max((self._deepest - 1).bit_length(), 8)
            return f"16-bit values up to {self._deepest - 1:,} are read as 0 to 65535: --pixel-range {bits} reads 0 to {2**bits - 1}"
        return "were they scaled to values from 0 to 1, or are they masks? Store images with values from 0 to 255"

    def _range_text(self) -> str:
        assert self._range is not None
        bits = self._range.bits
        return f"--pixel-range {bits if bits is not None else f'{self._range.low:g}..{self._range.high:g}'}"

    def _first(self) -> str:
        return f"the first {self._images:,} images"


def watched(
    batches: Iterator[ImageBatch], pixel_range: PixelRange | None, say: Callable[[str], None]
) -> Iterator[ImageBatch]:
    """Yield batches that are not normalized yet, and report once what is wrong with the first images.

    Args:
        batches: the batches.
        pixel_range: the range that the dataset is read with, if one was given.
        say: receives the warning, if there is one.
    """
    first = FirstImages(pixel_range)

    def report() -> None:
        if (text := first.warning()) is not None:
            say(f"warning: {text}")

    try:
        for batch in batches:
            if not first.is_complete:
                first.add(batch)
                if first.is_complete:
                    report()
            yield batch
    finally:  # a run does not ask for a batch after the last one
        if not first.is_complete:
            report()


def _most(mask: npt.NDArray[np.bool_]) -> bool:
    return bool(mask.mean() >= _MOST)
