"""Decoding and preprocessing in worker processes."""

import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from featcache.extraction.decoding.rgb import content_digest, rgb_image
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.decode import MAX_PIXELS
from featcache.extraction.sources.pixels import FACTS, facts_of
from featcache.store.errors import DatasetError, FeatcacheError, UnavailableError
from featcache.store.planning import CONTENT_DIGEST_BYTES
from featcache.store.text import reason


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
    facts: Tensor
    """``[B, len(FACTS)]`` int64: facts found while decoding each image; zeros for images that failed."""
    unavailable: list[str]
    """Messages of images whose files are gone or cannot be read; these images count as failures too."""


class Prepared(NamedTuple):
    """One image as the backbone takes it."""

    tensor: Tensor
    """``[3, S, S]`` float32."""
    digest: bytes
    """Beginning of the SHA-256 of the decoded image."""
    facts: tuple[int, ...]
    """By `FACTS`."""


class WorkerError(FeatcacheError, RuntimeError):
    """A process that decodes images came to an end on its own."""


class _Images(Dataset[Prepared | DatasetError]):
    """Preprocessed images by (split, row), each with the digest of its content."""

    def __init__(self, source: Source, transform: Any) -> None:
        self._source = source
        self._transform = transform
        self._shorter_side = _shorter_side(transform)

    def __getitem__(self, spot: tuple[str, int]) -> Prepared | DatasetError:
        # An error raised in a worker would reach the user wrapped in a traceback; returned, it stays one line.
        try:
            return self._prepared(*spot)
        except DatasetError as error:
            return error
        except MemoryError:
            return DatasetError(f"image {self._id(*spot)!r} needs more memory than there is")
        except OSError as error:
            if error.errno is None:
                raise
            return UnavailableError(f"image {self._id(*spot)!r} cannot be read ({error.strerror or error})")

    def __getitems__(self, spots: Sequence[tuple[str, int]]) -> list[Prepared | DatasetError]:
        # The loader asks for a whole batch at once where it can: rows of one split.
        with suppress(DatasetError, OSError):  # decoding reports every image concerned
            self._source.prepare(spots[0][0], [row for _, row in spots])
        return [self[spot] for spot in spots]

    def _prepared(self, split: str, row: int) -> Prepared:
        image = rgb_image(self._source, split, row)
        facts = facts_of(image)
        self._refuse_strip(image, split, row)
        try:
            tensor: Tensor = self._transform(image)
        except MemoryError:
            raise
        except Exception as error:  # the libraries raise many kinds
            raise DatasetError(
                f"image {self._id(split, row)!r} of {image.width} x {image.height} pixels cannot be preprocessed "
                f"({type(error).__name__}: {reason(error)})"
            ) from error
        return Prepared(tensor, content_digest(image), tuple(facts.get(name, 0) for name in FACTS))

    def _refuse_strip(self, image: Image, split: str, row: int) -> None:
        """Refuse an image that resizing would blow up: of 60,000 x 1 pixels, 160 px on the shorter side are 6 GB."""
        short, long = sorted(image.size)
        if self._shorter_side is None or not short:
            return
        resized = self._shorter_side * long // short
        if resized * self._shorter_side > MAX_PIXELS:
            raise DatasetError(
                f"image {self._id(split, row)!r} is {image.width} x {image.height} pixels: with {self._shorter_side} px on the "
                f"shorter side it would be {resized:,} px long; crop it"
            )

    def _id(self, split: str, row: int) -> str:
        return self._source.splits[split][row].id


def _shorter_side(transform: Any) -> int | None:
    """Length of the shorter side to which a transform resizes, pixels; None if it resizes in another way."""
    for step in getattr(transform, "transforms", ()):
        size = getattr(step, "size", None)
        if type(step).__name__ == "Resize":
            sides = [size] if isinstance(size, int) else list(size or ())
            return int(sides[0]) if len(sides) == 1 else None
    return None


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


def _collate(items: Sequence[Prepared | DatasetError], size: int) -> ImageBatch:
    failures = [(row, str(item)) for row, item in enumerate(items) if isinstance(item, DatasetError)]
    blank = Prepared(torch.zeros(3, size, size), bytes(CONTENT_DIGEST_BYTES), (0,) * len(FACTS))
    done = [blank if isinstance(item, DatasetError) else item for item in items]
    content = torch.frombuffer(bytearray(b"".join(one.digest for one in done)), dtype=torch.uint8)
    images = torch.stack([one.tensor for one in done])
    facts = torch.tensor([one.facts for one in done], dtype=torch.int64)
    unavailable = [str(item) for item in items if isinstance(item, UnavailableError)]
    return ImageBatch(images, content.reshape(len(items), CONTENT_DIGEST_BYTES), failures, facts, unavailable)


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
