"""The selected tokens of one split, for the trainer: in memory where they fit, else streamed from the memory map.

Shapes: N samples, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from featcache.probe.dataset import as_tensor
from featcache.probe.memory import TRAIN, Budget
from featcache.probe.request import Selection
from featcache.probe.streaming import StreamedTokens
from featcache.probe.tokens import InMemoryTokens, TokenSource
from featcache.store.arrays import DTYPES
from featcache.store.errors import CacheError, RequestError
from featcache.store.reading.reader import Cache
from featcache.store.reading.split import SplitReader


@dataclass(frozen=True)
class SplitData:
    """The rows of a split that hold features."""

    tokens: TokenSource
    """T tokens a sample, in the order of the selection."""
    labels: npt.NDArray[np.int64]
    """``[N]``."""
    sample_ids: Sequence[str]
    streamed: bool
    bytes: int
    """Memory that the tokens take, or what is read ahead of them."""


def load_split(
    cache: Cache, split: str, selection: Selection, device: torch.device | str, memory: int | None = None
) -> SplitData:
    """Make the selected tokens of a split available.

    Args:
        cache: the cache.
        split: name of the split.
        selection: which tokens.
        device: where they are loaded to, if they are.
        memory: bytes that they may take; what is larger is streamed. None for no limit.

    Raises:
        UnknownNameError: a layer or token kind is not cached.
        CacheError: the cache is damaged, or no row holds features.
    """
    reader = cache[split]
    valid = np.flatnonzero(reader.valid())
    if not len(valid):
        raise CacheError(f"{cache.directory}: split {split!r} holds no features yet")
    labels, ids = reader.labels(), reader.sample_ids()
    if len(valid) < reader.num_samples:
        labels, ids = labels[valid], [ids[row] for row in valid]
    window = stream_window(reader, selection, memory)
    if window is not None:
        streamed = StreamedTokens(reader, selection, valid, window)
        return SplitData(streamed, labels, ids, streamed=True, bytes=window)
    size = split_bytes(reader, selection)
    tokens = InMemoryTokens(_load(reader, selection, valid), device, valid)
    return SplitData(tokens, labels, ids, streamed=False, bytes=size)


def stream_window(reader: SplitReader, selection: Selection, memory: int | None) -> int | None:
    """Bytes that are read ahead where the tokens of a split do not fit into `memory`; None where they fit."""
    fits = memory is None or split_bytes(reader, selection) <= memory
    return None if fits else memory


def check_memory(reader: SplitReader, selection: Selection, batch_size: int, budget: Budget) -> None:
    """Refuse a budget in which not even three mini-batches of a streamed train split fit.

    Raises:
        RequestError: naming the least budget.
    """
    window = stream_window(reader, selection, budget.for_tokens(TRAIN))
    least = 3 * batch_size * split_bytes(reader, selection) // max(1, reader.num_samples)
    if window is not None and window < least:
        raise RequestError(
            f"three mini-batches of {batch_size:,} samples, {selection.num_tokens} tokens each, do not fit into a memory of "
            f"{budget.total / 1e6:,.1f} MB; give at least {2 * least / 1e6:,.1f} MB, or ask for fewer layers or tokens"
        )


def split_bytes(reader: SplitReader, selection: Selection) -> int:
    """Bytes that the selected tokens of a split take in memory."""
    width = _width(reader, selection)
    return reader.num_samples * selection.num_tokens * width * DTYPES[reader.dtype].stored.itemsize


def _load(reader: SplitReader, selection: Selection, valid: npt.NDArray[np.int64]) -> torch.Tensor:
    """The valid rows, ``[N, T, D]`` as stored."""
    shape = (len(valid), selection.num_tokens, _width(reader, selection))
    out = np.empty(shape, DTYPES[reader.dtype].stored)
    start = 0
    for part in selection.parts:
        view, into = reader.view(group=part.group), out[:, start : start + part.num_tokens]
        # Dividing an axis makes a view, so this is read straight into its place.
        place = into.reshape(len(out), len(part.layers), len(part.tokens), -1)
        if len(valid) == reader.num_samples:
            view.load(part.layers, part.tokens, out=place)
        else:
            view.gather(valid, part.layers, part.tokens, out=place)
        start += part.num_tokens
    return as_tensor(out, reader.dtype)


def _width(reader: SplitReader, selection: Selection) -> int:
    return reader.view(group=selection.parts[0].group).width
