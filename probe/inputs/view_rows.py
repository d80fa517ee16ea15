"""Rows of samples that are seen in several views: the rows of one view after those of another.

Shapes: N samples, V views; row ``v * N + n`` is view v of sample n.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probing.inputs.tokens import TokenSource
from featcache.probing.inputs.transforms import InputTransform

Rows = npt.NDArray[np.int64]


def rows_of_views(samples: Rows, num_samples: int, num_views: int) -> Rows:
    """Return the rows ``[V * M]`` of all views of M samples out of N = `num_samples`, ascending where `samples` are."""
    return np.concatenate([samples + view * num_samples for view in range(num_views)])


def tile(values: npt.NDArray[Any], num_views: int) -> npt.NDArray[Any]:
    """Repeat one value a sample, ``[N, ...]``, for each of the views: ``[V * N, ...]``."""
    return values if num_views == 1 else np.concatenate([values] * num_views)


class StreamedViews:
    """A `TokenSource` of several views, each streamed from its own arrays.

    A mini-batch takes about as many rows from each view, in the order in which that view is streamed.

    Args:
        views: a source for each view, of the same samples.
    """

    def __init__(self, views: Sequence[TokenSource]) -> None:
        self._views = tuple(views)
        self.num_views = len(views)
        self.input_transform: InputTransform = views[0].input_transform

    @property
    def num_samples(self) -> int:
        """Number of rows V * N."""
        return sum(view.num_samples for view in self._views)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self._views[0].num_tokens

    @property
    def width(self) -> int:
        """D."""
        return self._views[0].width

    def batch(self, rows: Tensor) -> Tensor:
        """Return the tokens of `rows`, ``[B, T, D]`` float32, through the transform."""
        tokens: Tensor | None = None
        for view, own in self._divided(rows):
            part = self._views[view].batch(rows[own] - view * self._views[0].num_samples)
            if tokens is None:
                tokens = part.new_empty(len(rows), *part.shape[1:])
            tokens[own.to(part.device)] = part
        return self._views[0].batch(rows) if tokens is None else tokens

    def epochs(
        self, rows: Tensor, batch_size: int, num_epochs: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the mini-batches; all but the last of an epoch have `batch_size` rows."""
        share = max(1, batch_size // self.num_views)
        for epoch in range(num_epochs):
            streams = [
                self._view_epoch(view, rows[own], share, seed * 2**20 + epoch * self.num_views + view)
                for view, own in self._divided(rows)
            ]
            yield from _in_batches(_in_turn(streams), batch_size)

    def with_transform(self, transform: InputTransform) -> Self:
        """Return the same tokens through another transform."""
        other = copy(self)
        other._views = tuple(view.with_transform(transform) for view in self._views)
        other.input_transform = other._views[0].input_transform
        return other

    def subset(self, rows: Tensor) -> Self:
        """Return a source of all views of some samples; `rows` are those of `rows_of_views`."""
        other, size = copy(self), len(rows) // self.num_views
        samples = rows[:size]
        if not torch.equal(
            rows, torch.from_numpy(rows_of_views(samples.numpy(), self._views[0].num_samples, self.num_views))
        ):
            raise ValueError("rows must be all views of some samples")
        other._views = tuple(view.subset(samples) for view in self._views)
        return other

    def sequential(self) -> Self:
        """Return the same tokens for reading all of them in order."""
        other = copy(self)
        other._views = tuple(view.sequential() for view in self._views)
        return other

    def _divided(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield every view that has some of `rows`, and their places among `rows`."""
        of = rows // self._views[0].num_samples
        for view in range(self.num_views):
            places = (of == view).nonzero().squeeze(1)
            if len(places):
                yield view, places

    def _view_epoch(
        self, view: int, rows: Tensor, batch_size: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        first = view * self._views[0].num_samples
        for chosen, tokens in self._views[view].epochs(rows - first, batch_size, 1, seed):
            yield chosen + first, tokens


def _in_turn(streams: Sequence[Iterator[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one item of every stream after another, until all have ended."""
    left = list(streams)
    while left:
        for stream in tuple(left):
            item = next(stream, None)
            if item is None:
                left.remove(stream)
            else:
                yield item


def _in_batches(parts: Iterator[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Join and divide parts into batches of one size; the last one has what is left."""
    waiting: list[tuple[Tensor, Tensor]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part[0])
        while count >= batch_size:
            rows, tokens = _joined(waiting)
            yield rows[:batch_size], tokens[:batch_size]
            count -= batch_size
            waiting = [(rows[batch_size:], tokens[batch_size:])] if count else []
    if count:
        yield _joined(waiting)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([rows for rows, _ in parts]), torch.cat([tokens for _, tokens in parts])
