"""Decoding and preprocessing in worker processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featcache.extract.sources.base import Source
from featcache.store.errors import DatasetError


@dataclass(frozen=True)
class Rows:
    """The rows of one forward pass: they never straddle a block."""

    split: str
    start: int
    stop: int


class _Images(Dataset[Tensor | DatasetError]):
    """Preprocessed images by (split, row)."""

    def __init__(self, source: Source, transform: Any) -> None:
        self._source = source
        self._transform = transform

    def __getitem__(self, spot: tuple[str, int]) -> Tensor | DatasetError:
        # An error raised in a worker would reach the user wrapped in a traceback; returned, it stays one line.
        try:
            image: Image = self._source.image(*spot).convert("RGB")
        except DatasetError as error:
            return error
        tensor: Tensor = self._transform(image)
        return tensor


def image_batches(
    source: Source, transform: Any, batches: Sequence[Rows], workers: int, pin: bool
) -> DataLoader[Any]:
    """Return a loader that yields one collated batch for each of `batches`, in order: `Tensor` or `DatasetError`."""
    return DataLoader(
        _Images(source, transform),
        batch_sampler=[[(rows.split, row) for row in range(rows.start, rows.stop)] for rows in batches],
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupts,
        pin_memory=pin,
    )


def _collate(images: list[Tensor | DatasetError]) -> Tensor | DatasetError:
    for image in images:
        if isinstance(image, DatasetError):
            return image
    return torch.stack([image for image in images if isinstance(image, Tensor)])


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides what happens, and workers end with it.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
