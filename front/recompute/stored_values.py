"""Rows of one array as a cache stores them, and recomputed features as it would have stored them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.store.convert.stored import to_stored_type
from featcache.store.quantization import INT8, LARGEST_CODE, MISSING_CODE, Scales
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import as_float32
from featcache.store.reading.split import SplitReader

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoredArray:
    """B rows of one array of a cache, in all layers that it holds."""

    dtype: str
    """Stored type."""
    raw: Array
    """``[B, L, K, D]`` as stored."""
    scales: Scales | None
    """Scales of the held layers, for int8."""

    @classmethod
    def read(cls, view: SplitReader, rows: Sequence[int], layers: Sequence[str]) -> "StoredArray":
        """Read rows of some layers of a view.

        Raises:
            CacheError: a file is missing or damaged.
        """
        dtype = view.stored_dtype
        raw = view.gather(rows, layers, view.tokens, dtype=dtype)
        return cls(dtype, raw, view.scales(layers) if dtype == INT8 else None)

    @property
    def values(self) -> Features:
        """The features that are handed out, float32."""
        if self.scales is None:
            return as_float32(self.raw, self.dtype)
        return self.scales.decode(self.raw)

    def rounded(self, fresh: Features) -> tuple[Features, npt.NDArray[np.bool_]]:
        """Return features ``[B, L, K, D]`` as they come out of the stored type, and which values int8 clips."""
        if self.scales is None:
            stored = as_float32(to_stored_type(fresh, "float32", self.dtype), self.dtype)
            return stored, np.zeros(fresh.shape, np.bool_)
        codes, clipped = self.scales.encode(fresh)
        return self.scales.decode(codes), clipped

    def distance(self, fresh: Features) -> Features:
        """Return how far recomputed features lie from all values that are stored as these are; 0 where they agree.

        A float type is compared after rounding. A code stands for the values within half a step, the first and the last one for all
        beyond: rounding may part two values that hardly differ, and would count for a whole step.
        """
        if self.scales is None:
            exact: Features = np.abs(self.values - self.rounded(fresh)[0])
            return exact
        scale, offset = self.scales.scale, self.scales.offset
        codes = self.raw.astype(np.float32)
        low, high = ((codes + half) * scale + offset for half in (-0.5, 0.5))
        low[self.raw <= -LARGEST_CODE], high[self.raw >= LARGEST_CODE] = -np.inf, np.inf
        distance: Features = np.maximum(np.maximum(low - fresh, fresh - high), 0)
        distance[self.raw == MISSING_CODE] = np.nan
        return distance
