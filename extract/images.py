"""Decoding and preprocessing in worker processes."""

import hashlib
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featcache.extract.rgb import to_rgb
from featcache.extract.sources.base import Source
from featcache.store.errors import DatasetError, UnavailableError
from featcache.store.planning import CONTENT_DIGEST_BYTES


@dataclass(frozen=True)
class Rows:
    """The rows of one forward pass: they never straddle a block."""

    split: str
    start: int
    stop: int


class ImageBatch(NamedTuple):
    """The images of one forward pass. Workers hand it over, so it holds nothing but tensors and text."""

    images: Tensor
    """``[B, 3, S, S]`` float32; zeros where an image failed, so that the other rows keep their places."""
    content: Tensor
    """``[B, 16]`` uint8: beginning of the SHA-256 of every decoded image, for telling the same image again."""
    failures: list[tuple[int, str]]
    """Row of the batch and message of every image that could not be decoded."""
    unavailable: list[str]
    """Messages of images whose files are gone or cannot be read; they are among the failures too."""


class _Images(Dataset[tuple[Tensor, bytes] | DatasetError]):
    """Preprocessed images by (split, row), each with the digest of its content."""

    def __init__(self, source: Source, transform: Any) -> None:
        self._source = source
        self._transform = transform

    def __getitem__(self, spot: tuple[str, int]) -> tuple[Tensor, bytes] | DatasetError:
        # An error raised in a worker would reach the user wrapped in a traceback; returned, it stays one line.
        try:
            image = self._rgb(*spot)
        except DatasetError as error:
            return error
        tensor: Tensor = self._transform(image)
        return tensor, content_digest(image)

    def __getitems__(self, spots: Sequence[tuple[str, int]]) -> list[tuple[Tensor, bytes] | DatasetError]:
        # The loader asks for a whole batch at once where it can: rows of one split.
        self._source.prepare(spots[0][0], [row for _, row in spots])
        return [self[spot] for spot in spots]

    def _rgb(self, split: str, row: int) -> Image:
        image = self._source.image(split, row)
        try:
            return to_rgb(image, self._source.pixels)
        except ValueError as error:
            raise DatasetError(f"image {self._source.splits[split][row].id!r}: {error}") from None


def content_digest(image: Image) -> bytes:
    """First 16 bytes of SHA-256 over width, height and pixels of an RGB image."""
    digest = hashlib.sha256(f"{image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.digest()[:CONTENT_DIGEST_BYTES]


def image_batches(
    source: Source, transform: Any, batches: Iterable[Rows], workers: int, pin: bool, size: int
) -> DataLoader[ImageBatch]:
    """Return a loader that yields one `ImageBatch` for each of `batches`, in order; `size` is S in pixels."""
    images: Any = _Images(source, transform)  # what it yields and what is collated are of different types
    return DataLoader(
        images,
        batch_sampler=([(rows.split, row) for row in range(rows.start, rows.stop)] for rows in batches),
        num_workers=workers,
        collate_fn=partial(_collate, size=size),
        worker_init_fn=_leave_interrupts_to_the_main_process,
        pin_memory=pin,
    )


def _collate(items: Sequence[tuple[Tensor, bytes] | DatasetError], size: int) -> ImageBatch:
    failures = [(row, str(item)) for row, item in enumerate(items) if isinstance(item, DatasetError)]
    blank = torch.zeros(3, size, size), bytes(CONTENT_DIGEST_BYTES)
    pairs = [blank if isinstance(item, DatasetError) else item for item in items]
    content = torch.frombuffer(bytearray(b"".join(digest for _, digest in pairs)), dtype=torch.uint8)
    images = torch.stack([image for image, _ in pairs])
    unavailable = [str(item) for item in items if isinstance(item, UnavailableError)]
    return ImageBatch(images, content.reshape(len(items), CONTENT_DIGEST_BYTES), failures, unavailable)


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
