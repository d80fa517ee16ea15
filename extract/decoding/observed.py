"""Facts that only decoding can tell: how many images are turned, transparent, of 16 bits, of several pages."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from featcache.extraction.sources.pixels import FACTS
from featcache.store.files import JsonObject

_DEEP = FACTS.index("deep")
_DARK = 2**15
"""16-bit images whose values all lie below this bound most likely hold fewer bits, so a note says so."""
_TEXTS = {
    "alpha": "{} transparency, which is dropped",
    "frames": "{} several pages or frames, of which the first is taken",
    "channels": "{} further channels besides grey or RGB, which are left out",
    "clipped": "{} values outside of --pixel-range, which become black or white",
}


class Observed:
    """The facts of all images of one run, counted."""

    def __init__(self) -> None:
        self._images = 0
        self._counts = dict.fromkeys(FACTS, 0)
        self._largest = 0

    def add(self, facts: npt.NDArray[np.int64]) -> None:
        """Count the facts of a batch, ``[B, len(FACTS)]``."""
        self._images += len(facts)
        for name, count in zip(FACTS, (facts > 0).sum(0).tolist(), strict=True):
            self._counts[name] += count
        self._largest = max(self._largest, int(facts[:, _DEEP].max(initial=0)) - 1)

    def to_dict(self) -> JsonObject:
        """Return the counts for provenance: those that are not zero, and the number of images behind them."""
        counts = {name: count for name, count in self._counts.items() if count}
        largest = {"largest_16_bit_value": self._largest} if self._counts["deep"] else {}
        return {"images": self._images, **counts, **largest}

    def notes(self, upright: bool) -> Iterator[str]:
        """Yield notes on everything in the images that is not used exactly as stored.

        Args:
            upright: whether images were turned by their EXIF orientation.
        """
        if count := self._counts["turned"]:
            yield (
                f"{_have(count)} an EXIF orientation and {_were(count)} turned upright"
                if upright
                else f"{_have(count)} an EXIF orientation and {_were(count)} not turned (--exif makes a cache with images upright)"
            )
        for name, text in _TEXTS.items():
            if count := self._counts[name]:
                yield text.format(_have(count))
        if (count := self._counts["deep"]) and self._largest < _DARK:
            bits = max(self._largest.bit_length(), 8)
            yield (
                f"{_have(count)} 16-bit pixels with values up to {self._largest} only, which were taken as 0 to 65535 and are "
                f"dark; if white is less, say so (--pixel-range {bits} is 0 to {2**bits - 1})"
            )


def _have(count: int) -> str:
    return "1 image has" if count == 1 else f"{count:,} images have"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
