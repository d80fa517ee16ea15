"""The selected tokens of one split, for the trainer: in memory where they fit, else streamed from the memory map.

Shapes: N samples, T tokens, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featcache.probing.inputs.dataset import as_tensor
from featcache.probing.inputs.memory import TRAIN, Budget
from featcache.probing.inputs.selection import Selection
from featcache.probing.inputs.streaming import StreamedTokens
from featcache.probing.inputs.tokens import InMemoryTokens, TokenSource
from featcache.probing.inputs.transforms import PLAIN, InputTransform
from featcache.probing.inputs.view_rows import StreamedViews, rows_of_views, tile
from featcache.probing.protocols.protocol import Protocol
from featcache.store.arrays import DTYPES
from featcache.store.errors import CacheError, RequestError
from featcache.store.layers import FINAL
from featcache.store.reading.reader import Cache
from featcache.store.reading.split import SplitReader
from featcache.store.token_groups import PATCHES


@dataclass(frozen=True)
class SplitData:
    """The rows of a split that hold features."""

    tokens: TokenSource
    """T tokens a row, in the order of the selection; as many rows as samples times views."""
    labels: npt.NDArray[Any]
    """Class indices ``[N]``, int64; or other targets, ``[N, O]``."""
    sample_ids: Sequence[str]
    streamed: bool
    bytes: int
    """Memory that the tokens take, or what is read ahead of them."""
    groups: npt.NDArray[Any] | None = None
    """Group of every sample ``[N]``; samples of one group are held out together. None if no groups are known."""

    @property
    def num_samples(self) -> int:
        """Number N of samples."""
        return len(self.labels)

    @property
    def num_views(self) -> int:
        """Number V of views of every sample."""
        return self.tokens.num_views

    @property
    def row_labels(self) -> npt.NDArray[Any]:
        """The target of every row of `tokens`: those of the samples, view after view."""
        return tile(self.labels, self.num_views)

    def subset(self, rows: npt.NDArray[np.int64]) -> "SplitData":
        """Return some of the samples, ascending, with all of their views."""
        ids = [self.sample_ids[row] for row in rows]
        tokens = self.tokens.subset(torch.from_numpy(rows_of_views(rows, self.num_samples, self.num_views)))
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, tokens=tokens, labels=self.labels[rows], sample_ids=ids, groups=groups)


def load_split(
    cache: Cache,
    split: str,
    selection: Selection,
    device: torch.device | str,
    memory: int | None = None,
    *,
    labeled: bool = True,
) -> SplitData:
    """Make the selected tokens of a split available.

    Args:
        cache: the cache.
        split: name of the split.
        selection: which tokens.
        device: where they are loaded to, if they are.
        memory: bytes that they may take; what is larger is streamed. None for no limit.
        labeled: whether labels are read; without, they are ``[N, 0]``.

    Raises:
        NoLabelsError: the cache has no labels, and they are to be read.
        UnknownNameError: a layer or token kind is not cached.
        CacheError: the cache is damaged, or no row holds features.
    """
    reader = cache[split]
    valid = np.flatnonzero(reader.valid())
    if not len(valid):
        raise CacheError(f"{cache.directory}: split {split!r} holds no features yet")
    labels = reader.labels() if labeled else np.zeros((reader.num_samples, 0), np.int64)
    ids = reader.sample_ids()
    if len(valid) < reader.num_samples:
        labels, ids = labels[valid], [ids[row] for row in valid]
    window = stream_window(reader, selection, memory)
    views = selection.views
    if window is not None:
        share = window // len(views)
        streams = [StreamedTokens(reader, selection, valid, share, device, view) for view in views]
        streamed: TokenSource = streams[0] if len(streams) == 1 else StreamedViews(streams)
        return SplitData(streamed, labels, ids, streamed=True, bytes=window)
    size = split_bytes(reader, selection)
    loaded = _load(reader, selection, valid)
    tokens = InMemoryTokens(loaded, device, tile(valid, len(views)), len(views))
    return SplitData(tokens, labels, ids, streamed=False, bytes=size)


def base_transform(cache: Cache, selection: Selection, protocol: Protocol) -> InputTransform:
    """What a protocol does to the tokens of a cache before any statistics: L2 normalisation, or the quirks of the published runs."""
    over_tokens = protocol.patch_norm_over_tokens and any(part.group == PATCHES for part in selection.parts)
    matrix = cache.projection() if protocol.projected_final else None
    projected = [place for place, (layer, _) in enumerate(selection.places()) if layer == FINAL]
    if matrix is None or not projected:
        return InputTransform(over_tokens=over_tokens) if over_tokens else PLAIN
    width = matrix.shape[0]
    padded = torch.zeros(width, max(width, matrix.shape[1]))
    padded[:, : matrix.shape[1]] = torch.from_numpy(matrix.copy())
    if padded.shape[1] != width:
        raise RequestError(
            f"the model projects to {padded.shape[1]} channels, more than the {width} of a token; set projected_final = false"
        )
    return InputTransform(over_tokens=over_tokens, projection=padded, projected=torch.tensor(projected))


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
    # Every view is streamed within its share of the budget.
    least = 3 * batch_size * split_bytes(reader, selection) // max(1, reader.num_samples)
    if window is not None and window < least:
        raise RequestError(
            f"three mini-batches of {batch_size:,} samples, {selection.num_tokens} tokens each, do not fit into a memory of "
            f"{budget.total:,} bytes; give at least {max(0.1, 2 * least / 1e6):,.1f} MB, or ask for fewer layers or tokens"
        )


def split_bytes(reader: SplitReader, selection: Selection) -> int:
    """Bytes that the selected tokens of a split take in memory."""
    width = _width(reader, selection)
    rows = reader.num_samples * len(selection.views)
    return rows * selection.num_tokens * width * DTYPES[selection.value_type(reader)].stored.itemsize


def _load(reader: SplitReader, selection: Selection, valid: npt.NDArray[np.int64]) -> torch.Tensor:
    """The valid rows of all views, ``[V * N, T, D]`` as they are handed out."""
    num_views, num_rows = len(selection.views), len(valid)
    shape = (num_views * num_rows, selection.num_tokens, _width(reader, selection))
    dtype = selection.value_type(reader)
    out = np.empty(shape, DTYPES[dtype].stored)
    for index, view in enumerate(selection.views):
        _load_view(reader, selection, view, valid, out[index * num_rows : (index + 1) * num_rows])
    return as_tensor(out, dtype)


def _load_view(
    reader: SplitReader,
    selection: Selection,
    view: str,
    valid: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
) -> None:
    """Read the valid rows of one view into `out`, ``[N, T, D]``."""
    start = 0
    for part in selection.parts:
        held, into = part.of(reader, view), out[:, start : start + part.num_tokens]
        # Dividing an axis makes a numpy view, so this is read straight into its place.
        place = into.reshape(len(out), len(part.layers), len(part.tokens), -1)
        if len(valid) == reader.num_samples:
            held.load(part.layers, part.tokens, out=place)
        else:
            held.gather(valid, part.layers, part.tokens, out=place)
        start += part.num_tokens


def _width(reader: SplitReader, selection: Selection) -> int:
    return selection.parts[0].of(reader, selection.views[0]).width
