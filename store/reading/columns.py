"""What a split says about its rows, and about the features that it holds."""

import numpy as np
import numpy.typing as npt

from featcache.store.planning import CONTENT_DIGEST
from featcache.store.reading.chunks import ChunkFiles
from featcache.store.reading.reads import read_column


class SplitColumns:
    """Labels, ids and validity of N rows, and the names, width and type of their features."""

    def __init__(self, files: ChunkFiles) -> None:
        """Read from these files."""
        self._files = files
        self.inventory = files.inventory
        self.num_samples = files.inventory.num_samples

    @property
    def dtype(self) -> str:
        """Value type of the features: ``float16``, ``float32`` or ``bfloat16``."""
        return self._files.token_array.dtype

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

    def labels(self) -> npt.NDArray[np.int64]:
        """Class index of every row: int64 ``[N]``, -1 in rows that are not committed."""
        return read_column(self._files, "label")

    def valid(self) -> npt.NDArray[np.bool_]:
        """Which rows hold features: bool ``[N]``."""
        return read_column(self._files, "valid")

    def content_digests(self) -> npt.NDArray[np.uint8] | None:
        """Beginning of the SHA-256 of every decoded image: uint8 ``[N, 16]``; None if the cache does not have it."""
        return read_column(self._files, CONTENT_DIGEST) if CONTENT_DIGEST in self.inventory.arrays else None

    def sample_ids(self) -> list[str]:
        """Id of every row, empty for rows that are not committed."""
        return [row.tobytes().rstrip(b"\0").decode() for row in read_column(self._files, "sample_id")]
