"""Columns of a split (labels, ids, validity), and the names and type of its features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store.arrays import ArrayInfo
from featcache.store.columns import id_mismatch, valid_mismatch
from featcache.store.errors import CacheError, NoLabelsError
from featcache.store.planning import CONTENT_DIGEST
from featcache.store.quantization import Scales
from featcache.store.reading.chunks import ChunkFiles
from featcache.store.reading.copying import RowCopier
from featcache.store.reading.reads import read_column
from featcache.store.targets import Targets


class SplitColumns:
    """Labels, ids and validity of N rows, and the names, width and type of their features."""

    def __init__(self, files: ChunkFiles, folder: Path, targets: Targets | None) -> None:
        """Read from these files in `folder`; labels are what `targets` says, where that is known."""
        self._files = files
        self._copier = RowCopier(files)
        self._folder = folder
        self.targets = targets
        """Kind, names and units of the targets, where known."""
        self.inventory = files.inventory
        self.num_samples = files.inventory.num_samples

    @property
    def dtype(self) -> str:
        """Value type in which features are handed out unless another is asked for: ``float16``, ``float32`` or ``bfloat16``.

        It is the type on disk; of int8 features float16, or float32 where values may be too large for that.
        """
        return self._copier.types.default

    @property
    def stored_dtype(self) -> str:
        """Value type of the features on disk: ``float16``, ``float32``, ``bfloat16`` or ``int8``."""
        return self._files.token_array.dtype

    def scales(self, layers: Sequence[str]) -> Scales:
        """Return the scales and offsets of int8 features in some layers, float32 ``[L, K, D]`` each.

        Raises:
            UnknownNameError: a layer is not cached.
            CacheError: their files are missing or damaged.
        """
        return self._copier.types.scales(layers, range(len(self.tokens)))

    @property
    def token_arrays(self) -> tuple[ArrayInfo, ...]:
        """The arrays that the features of this reader lie in: that of its tap, that of the final layer, or both."""
        return self._files.token_arrays

    @property
    def width(self) -> int:
        """Token width D."""
        return self._files.token_array.shape[3]

    @property
    def tokens(self) -> tuple[str, ...]:
        """Token kinds that are cached."""
        return self._files.token_array.tokens

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer names that are cached, in order."""
        return self._files.layers

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return an array without layers as it is stored, ``[N, ...]``; the fill value in rows that are not committed."""
        return read_column(self._files, name)

    def labels(self) -> npt.NDArray[Any]:
        """Return the target of every row, of the type that `targets` states.

        int64 ``[N]``, index of the class (single-label); uint8 ``[N, C]``, 0 or 1 (multi-label); float32 ``[N, T]``
        (regression). Rows that are not committed have -1, 0 or NaN.

        Raises:
            NoLabelsError: the cache has no labels.
            CacheError: a row that holds features has a label that cannot be; or as for `valid`.
        """
        if "label" not in self.inventory.arrays:
            raise NoLabelsError(
                f"{self._folder.parent.parent} has no labels; attach some with `featcache label CACHE labels.csv`"
            )
        labels = read_column(self._files, "label")
        if self.targets is not None:
            self._refuse("label", self.targets.mismatch(labels, self.valid()))
        return labels

    def valid(self) -> npt.NDArray[np.bool_]:
        """Return a mask ``[N]`` of the rows that hold features.

        Raises:
            CacheError: a file is missing or of the wrong size, or holds other bytes than 0 and 1.
        """
        valid: npt.NDArray[np.bool_] = read_column(self._files, "valid")
        self._refuse("valid", valid_mismatch(valid))
        return valid

    def content_digests(self) -> npt.NDArray[np.uint8] | None:
        """Return the beginning of the SHA-256 of every decoded image: uint8 ``[N, 16]``; None if the cache does not have it."""
        return read_column(self._files, CONTENT_DIGEST) if CONTENT_DIGEST in self.inventory.arrays else None

    def sample_ids(self) -> list[str]:
        """Return the id of every row, empty for rows that are not committed.

        Raises:
            CacheError: an id is not UTF-8; or as for `valid`.
        """
        ids = read_column(self._files, "sample_id")
        try:
            return [row.tobytes().rstrip(b"\0").decode() for row in ids]
        except UnicodeDecodeError:
            self._refuse("sample_id", id_mismatch(ids))
            raise

    def _refuse(self, array: str, mismatch: str | None) -> None:
        if mismatch:
            raise CacheError(
                f"{self._folder / array}: {mismatch}; the cache is damaged or was not made by featcache"
            )
