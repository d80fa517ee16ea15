"""Stored features as the values that a reader hands out: float16 or float32 of any stored type, tile by tile.

Shapes: B rows, L layers, K token kinds, D width.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from featcache.store.arrays import DTYPES
from featcache.store.errors import RequestError
from featcache.store.quantization import INT8, MISSING_CODE, Scales
from featcache.store.reading.chunks import Array, ChunkFiles
from featcache.store.reading.scales import load_scales

TILE_BYTES = 2**17 - 1
"""Size of a tile in float32: it stays in the processor's cache while it is scaled, shifted and rounded, and torch does not divide it
among threads of its own, which would be those of other tiles."""


MAX_DECODES = 64
"""Selections of layers and kinds whose scales are kept put together."""


class Decode(Protocol):
    """Turns stored values into those handed out."""

    def __call__(self, stored: Array, out: Array) -> None:
        """Fill `out` ``[B, L, K, D]`` from `stored` of the same shape; of a single layer, both may be ``[B, K, D]``."""


class Kernel(Protocol):
    """Computes ``codes * scale + offset`` in float32 and rounds to the type of `out`."""

    def __call__(
        self,
        codes: npt.NDArray[np.int8],
        scale: npt.NDArray[np.float32],
        offset: npt.NDArray[np.float32],
        out: Array,
        scratch: npt.NDArray[np.float32],
    ) -> None:
        """Fill `out` ``[B, F]`` from `codes` ``[B, F]``; scale and offset are ``[F]``, `scratch` is ``[B, F]`` for values in between."""


def numpy_kernel(
    codes: npt.NDArray[np.int8],
    scale: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    out: Array,
    scratch: npt.NDArray[np.float32],
) -> None:
    """See `Kernel`."""
    values = out if out.dtype == np.float32 else scratch
    np.multiply(codes, scale, out=values)
    np.add(values, offset, out=values)
    if values is not out:
        out[...] = values


class _Kernels:
    """The kernel of this process."""

    current: Kernel = staticmethod(numpy_kernel)


def use_kernel(kernel: Kernel) -> None:
    """Decode with another kernel from now on; it must give the same values as `numpy_kernel`, bit for bit."""
    _Kernels.current = staticmethod(kernel)


class ValueTypes:
    """The types in which the features of one view of a split can be handed out.

    Args:
        files: the chunk files of the view.
    """

    def __init__(self, files: ChunkFiles) -> None:
        self._files = files
        self._scales: dict[str, tuple[Array, Array]] = {}
        self._decodes: dict[tuple[tuple[str, ...], tuple[int, ...]], _Dequantize] = {}

    @property
    def stored(self) -> str:
        """Type on disk."""
        return self._files.token_array.dtype

    @property
    def default(self) -> str:
        """The stored type; of int8 features float16, or float32 where a value may be too large for float16."""
        if self.stored != INT8:
            return self.stored
        return "float16" if self._fit_float16() else "float32"

    def choose(self, requested: str | None, out: Array | None) -> str:
        """Return the name of the type to hand out.

        Args:
            requested: the name, if one was given.
            out: the buffer, if one was given; without a name its own type counts.

        Raises:
            RequestError: the features cannot be handed out in this type.
        """
        if requested is None and out is None:
            return self.default
        if requested is None:
            names = [self.stored, "float32", "float16"]
            requested = next(
                (name for name in names if out is not None and out.dtype == DTYPES[name].stored), self.default
            )
        if requested in (self.stored, "float32"):
            return requested
        if requested == "float16" and self.stored == INT8:
            if self._fit_float16():
                return requested
            remedy = "values may be too large for float16; ask for float32"
        else:
            handed_out = (*(("float16",) if self.stored == INT8 else ()), "float32", self.stored)
            remedy = f"ask for {' or '.join(dict.fromkeys(handed_out))}"
        raise RequestError(f"features stored as {self.stored} are not handed out as {requested}: {remedy}")

    def decode(
        self, layers: Sequence[str], kinds: Sequence[int], out_type: np.dtype[np.generic]
    ) -> Decode | None:
        """Return what turns stored features of some layers and kinds into `out_type`; None if nothing is to be done.

        Args:
            layers: names of the layers.
            kinds: indices of the token kinds.
            out_type: numpy type of the values handed out.
        """
        if out_type == self._files.token_array.stored_dtype:
            return None
        if self.stored != INT8:
            return _widen_bfloat16 if self.stored == "bfloat16" else _cast
        chosen = tuple(layers), tuple(kinds)
        if chosen not in self._decodes:
            if len(self._decodes) >= MAX_DECODES:
                self._decodes.clear()
            # Putting scales together takes as long as a gather of a few rows.
            self._decodes[chosen] = _Dequantize(self.scales(*chosen))
        return self._decodes[chosen]

    def scales(self, layers: Sequence[str], kinds: Sequence[int]) -> Scales:
        """Return the scales of some layers and kinds of int8 features, ``[L, K, D]``."""
        parts = [self._layer_scales(layer, kinds) for layer in layers]
        scale, offset = (np.ascontiguousarray(np.stack(part)) for part in zip(*parts, strict=True))
        return Scales(scale, offset)

    def _layer_scales(self, layer: str, kinds: Sequence[int]) -> tuple[Array, Array]:
        """Return scale and offset ``[K, D]`` of the chosen kinds of one layer."""
        array, position = self._files.locate(layer)
        rows = []
        for values in self._array_scales(array.name):
            shared = values.shape[1] == 1
            rows.append(values[position][[0 if shared else kind for kind in kinds]])
        return rows[0], rows[1]

    def _array_scales(self, name: str) -> tuple[Array, Array]:
        if name not in self._scales:
            array = next(array for array in self._files.token_arrays if array.name == name)
            scales = load_scales(self._files.features, array)
            self._scales[name] = scales.scale, scales.offset
        return self._scales[name]

    def _fit_float16(self) -> bool:
        return all(Scales(*self._array_scales(array.name)).fit_float16 for array in self._files.token_arrays)


class _Dequantize:
    """Decodes codes of L layers and K kinds, whose scales are ``[L, K, D]``."""

    def __init__(self, scales: Scales) -> None:
        self._scale = scales.scale.reshape(-1)
        self._offset = scales.offset.reshape(-1)
        self._width = scales.scale.shape[-1]
        self._step = max(1, TILE_BYTES // (4 * self._scale.size))
        # Fresh memory for every tile would cost more than the arithmetic.
        self._local = threading.local()

    def __call__(self, stored: Array, out: Array) -> None:
        size = self._scale.size
        scratch = self._scratch()
        for start in range(0, len(stored), self._step):
            codes = stored[start : start + self._step].reshape(-1, size)
            target = out[start : start + self._step]
            # A slice of layers or kinds of a larger buffer is no flat memory.
            flat = target.reshape(-1, size) if target.flags.c_contiguous else np.empty(codes.shape, out.dtype)
            _Kernels.current(codes, self._scale, self._offset, flat, scratch[: len(codes)])
            self._blank_missing(codes, flat)
            if not target.flags.c_contiguous:
                target[...] = flat.reshape(target.shape)

    def _scratch(self) -> npt.NDArray[np.float32]:
        scratch: npt.NDArray[np.float32] | None = getattr(self._local, "scratch", None)
        if scratch is None:
            scratch = self._local.scratch = np.empty((self._step, self._scale.size), np.float32)
        return scratch

    def _blank_missing(self, codes: Array, flat: Array) -> None:
        # A token vector is there or missing as a whole, so its first channel tells.
        missing = codes[:, :: self._width] == MISSING_CODE
        if missing.any():
            flat.reshape(*missing.shape, self._width)[missing] = np.nan


def _widen_bfloat16(stored: Array, out: Array) -> None:
    np.left_shift(stored, 16, out=out.view(np.uint32), dtype=np.uint32)


def _cast(stored: Array, out: Array) -> None:
    out[...] = stored
