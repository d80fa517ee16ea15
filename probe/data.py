"""The selected tokens of one split, loaded from a cache for the trainer.

Shapes: N samples, L layers, K token kinds, T = L * K tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from featcache.probe.request import Selection
from featcache.probe.tokens import InMemoryTokens
from featcache.store.errors import CacheError
from featcache.store.reading.reader import Cache, as_float32


@dataclass(frozen=True)
class SplitData:
    """The rows of a split that hold features."""

    tokens: InMemoryTokens
    """T tokens a sample, layer by layer and token kinds within a layer."""
    labels: npt.NDArray[np.int64]
    """``[N]``."""
    sample_ids: Sequence[str]


def load_split(cache: Cache, split: str, selection: Selection, device: torch.device | str) -> SplitData:
    """Load the selected tokens of a split into the memory of `device`.

    Raises:
        UnknownNameError: a layer or token kind is not cached.
        CacheError: the cache is damaged, or no row holds features.
    """
    reader = cache[split]
    valid = np.flatnonzero(reader.valid())
    if not len(valid):
        raise CacheError(f"{cache.directory}: split {split!r} holds no features yet")
    features = reader.load(selection.layers, selection.tokens)
    labels, ids = reader.labels(), reader.sample_ids()
    if len(valid) < reader.num_samples:
        features, labels, ids = features[valid], labels[valid], [ids[row] for row in valid]
    if reader.dtype == "bfloat16":
        features = as_float32(features, reader.dtype)
    # [N, L, K, D] -> [N, T, D]
    flat = features.reshape(len(features), -1, features.shape[-1])
    return SplitData(InMemoryTokens(flat, device), labels, ids)
