"""Features as they are stored: rounded to a float type, or as int8 codes under the scales of the cache.

Shapes: B images, L layers, K tokens, D width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from featcache.store.arrays import ArrayInfo
from featcache.store.files import JsonObject
from featcache.store.quantization import INT8, LARGEST_CODE, Scales

TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}


def computed_dtype(stored: str) -> str:
    """Return the float type in which a pass gives features that are stored as `stored`: float32 for int8, before they are encoded."""
    return "float32" if stored == INT8 else stored


class Encoded(NamedTuple):
    """One array of a batch as it is stored."""

    values: Tensor
    """``[B, L, K, D]`` in the stored type."""
    finite: Tensor
    """Whether every value is finite in the stored type; a bool without dimensions."""
    clipped: Tensor | None = None
    """How many values lay outside the range of int8, an int64 without dimensions; None for float types."""


@dataclass
class Clipping:
    """Counts of int8 values and of those that were clipped. Several threads may add to it."""

    values: int = 0
    clipped: dict[str, int] = field(default_factory=dict)
    """Clipped values by array."""
    _lock: Lock = field(default_factory=Lock)

    def add(self, name: str, values: int, clipped: int) -> None:
        """Add a batch of one array."""
        with self._lock:
            self.values += values
            self.clipped[name] = self.clipped.get(name, 0) + clipped

    def to_dict(self) -> JsonObject:
        """Return the counts for provenance.json; nothing where no int8 value was written."""
        return {"values": self.values, "clipped": dict(sorted(self.clipped.items()))} if self.values else {}

    def notes(self) -> list[str]:
        """Return one line if values were clipped."""
        clipped = sum(self.clipped.values())
        if not clipped:
            return []
        return [
            f"{clipped:,} of {self.values:,} values ({clipped / self.values:.2g}) lay outside the range that was fitted for int8 and "
            "were clipped to its ends"
        ]


class FloatEncoder:
    """Rounds features to a float type."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        """Name of the stored type."""

    def __call__(self, name: str, values: Tensor) -> Encoded:
        """Encode the array `name`, float32 ``[B, L, K, D]`` on any device."""
        stored = values.to(TORCH_DTYPES[self.dtype])
        return Encoded(stored, stored.isfinite().all())

    def finite(self, values: Tensor) -> Tensor:
        """Return where float32 `values` are finite in the stored type."""
        return values.to(TORCH_DTYPES[self.dtype]).isfinite()

    def count(self, sizes: Mapping[str, int], clipped: Mapping[str, int]) -> None:
        """Do nothing: a float type clips no value."""


class Int8Encoder(FloatEncoder):
    """Turns features into int8 codes.

    Args:
        scales: the scales of every array by name, of all layers of its axis.
        arrays: the arrays that a pass gives; their layers choose among those of the scales.
        clipping: counts what is clipped.
    """

    def __init__(self, scales: Mapping[str, Scales], arrays: Iterable[ArrayInfo], clipping: Clipping) -> None:
        super().__init__(INT8)
        self._clipping = clipping
        self._scales = {}
        for array in arrays:
            part = scales[array.name].of([array.position(layer) for layer in array.layers])
            self._scales[array.name] = torch.from_numpy(part.scale), torch.from_numpy(part.offset)

    def __call__(self, name: str, values: Tensor) -> Encoded:
        """Encode the array `name`, float32 ``[B, L, K, D]`` on any device."""
        scale, offset = (part.to(values.device) for part in self._scales[name])
        self._scales[name] = scale, offset  # once a device
        codes = values.sub(offset).div_(scale).round_()  # to even, as numpy's rint
        clipped = (codes.abs() > LARGEST_CODE).sum()
        codes.clamp_(-LARGEST_CODE, LARGEST_CODE)
        return Encoded(codes.to(torch.int8), values.isfinite().all(), clipped)

    def finite(self, values: Tensor) -> Tensor:
        """Return where float32 `values` are finite: int8 has a code for each of these."""
        return values.isfinite()

    def count(self, sizes: Mapping[str, int], clipped: Mapping[str, int]) -> None:
        """Add one batch: its values by array, and how many of them were clipped."""
        for name, values in sizes.items():
            self._clipping.add(name, values, clipped[name])
