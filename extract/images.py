"""Decoding and preprocessing in worker processes."""

import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray
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
            image = self._rgb(*spot)
        except DatasetError as error:
            return error
        tensor: Tensor = self._transform(image)
        return tensor

    def _rgb(self, split: str, row: int) -> Image:
        image = self._source.image(split, row)
        try:
            return to_rgb(image)
        except ValueError as error:
            raise DatasetError(f"image {self._source.splits[split][row].id!r}: {error}") from None


def to_rgb(image: Image) -> Image:
    """Convert an image of any mode to 8-bit RGB; transparency is dropped.

    Pillow alone clips what is deeper than 8 bits: 16-bit greyscale comes out white, floating point black.

    Raises:
        ValueError: the range of the pixels is not known.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels are neither 8-bit nor 16-bit; convert it to one of these first")
        return fromarray((values // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the way that Pillow asks for
    return image.convert("RGB")


def image_batches(
    source: Source, transform: Any, batches: Iterable[Rows], workers: int, pin: bool
) -> DataLoader[Any]:
    """Return a loader that yields one collated batch for each of `batches`, in order: `Tensor` or `DatasetError`."""
    return DataLoader(
        _Images(source, transform),
        batch_sampler=([(rows.split, row) for row in range(rows.start, rows.stop)] for rows in batches),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_interrupts_to_the_main_process,
        pin_memory=pin,
    )


def _collate(images: list[Tensor | DatasetError]) -> Tensor | DatasetError:
    for image in images:
        if isinstance(image, DatasetError):
            return image
    return torch.stack([image for image in images if isinstance(image, Tensor)])


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides what happens, and workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    show = sys.excepthook

    def show_unless_hung_up(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        # The thread that hands tensors over would report that the main process hung up in the middle.
        if not issubclass(kind, EOFError | ConnectionError):
            show(kind, error, trace)

    sys.excepthook = show_unless_hung_up
