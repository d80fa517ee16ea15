"""Decoding and preprocessing, in this process or in workers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from featcache.extraction.decoding.batch import ImageBatch, Rows
from featcache.extraction.decoding.preprocessing import EightBitTransform
from featcache.extraction.decoding.rgb import digest_of_pixels, pixels_of, rgb_image, turned_upright
from featcache.extraction.decoding.views import Transform, ViewInput, prepare_views
from featcache.extraction.decoding.worker_pool import decode_in_processes
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.decode import MAX_PIXELS
from featcache.extraction.sources.pixels import FACTS, facts_of
from featcache.store.errors import DatasetError, UnavailableError
from featcache.store.planning import CONTENT_DIGEST_BYTES
from featcache.store.text import reason


class Prepared(NamedTuple):
    """One image, preprocessed."""

    tensors: tuple[Tensor, ...]
    """Every view ``[3, H, W]``, uint8 or float32 as in `ImageBatch`."""
    digest: bytes
    """Beginning of the SHA-256 of the decoded image, as it is stored."""
    facts: tuple[int, ...]
    """By `FACTS`."""


class BatchLoader:
    """Decodes and preprocesses the images of a batch.

    Args:
        source: the images.
        transform: the preprocessing.
        size: height and width of a preprocessed image, or the side of a square, pixels.
        upright: turn images by their EXIF orientation first.
        views: the views that every split needs; the plain one alone if not given.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        size: int | tuple[int, int],
        upright: bool = False,
        views: Mapping[str, tuple[ViewInput, ...]] | None = None,
    ) -> None:
        self._source = source
        self._transform = transform
        self._upright = upright
        self._plain = (ViewInput("", None, transform, (size, size) if isinstance(size, int) else size),)
        self._views = views
        every = [one for inputs in (views or {"": self._plain}).values() for one in inputs]
        covered = (_covered_size(one.transform) for one in every)
        self._covered = max((size for size in covered if size is not None), default=None)

    def _inputs(self, split: str) -> tuple[ViewInput, ...]:
        return (self._views or {}).get(split, self._plain)

    def __call__(self, rows: Rows) -> ImageBatch:
        """Load a batch; images that fail are part of it, everything else is raised."""
        spots = rows.numbers
        with suppress(DatasetError, OSError):  # decoding reports every image concerned
            self._source.prepare(rows.split, spots)
        return self._collated(
            [self._prepared_or_error(rows.split, row) for row in spots], self._inputs(rows.split)
        )

    def _prepared_or_error(self, split: str, row: int) -> Prepared | DatasetError:
        try:
            return self._prepared(split, row)
        except DatasetError as error:
            return error
        except MemoryError:
            return DatasetError(f"image {self._id(split, row)!r} needs more memory than there is")
        except OSError as error:
            if error.errno is None:
                raise
            return UnavailableError(
                f"image {self._id(split, row)!r} cannot be read ({error.strerror or error})"
            )

    def _prepared(self, split: str, row: int) -> Prepared:
        image = rgb_image(self._source, split, row)
        facts = facts_of(image)
        pixels = pixels_of(image)
        digest = digest_of_pixels(pixels)  # of the image as it is stored, whichever way up it is taken
        if self._upright and facts.get("turned"):
            image = turned_upright(image)
            pixels = pixels_of(image)
        self._refuse_strip(image, split, row)
        try:
            tensors = tuple(prepare_views(self._inputs(split), image, pixels, digest))
        except MemoryError:
            raise
        except Exception as error:  # the libraries raise many kinds
            raise DatasetError(
                f"image {self._id(split, row)!r} of {image.width} x {image.height} pixels cannot be preprocessed "
                f"({type(error).__name__}: {reason(error)})"
            ) from error
        return Prepared(tensors, digest, tuple(facts.get(name, 0) for name in FACTS))

    def _refuse_strip(self, image: Image, split: str, row: int) -> None:
        """Refuse an image that resizing would blow up: of 60,000 x 1 pixels, 160 px on the shorter side are 6 GB."""
        if self._covered is None or not min(image.size):
            return
        height, width = self._covered
        factor = max(height / image.height, width / image.width)
        resized = sorted((int(image.height * factor), int(image.width * factor)))
        if resized[0] * resized[1] > MAX_PIXELS:
            raise DatasetError(
                f"image {self._id(split, row)!r} is {image.width} x {image.height} pixels: with {resized[0]} px on the "
                f"shorter side it would be {resized[1]:,} px long; crop it"
            )

    def _id(self, split: str, row: int) -> str:
        return self._source.splits[split][row].id

    def _collated(self, items: list[Prepared | DatasetError], inputs: Sequence[ViewInput]) -> ImageBatch:
        failures = [(row, str(item)) for row, item in enumerate(items) if isinstance(item, DatasetError)]
        blank = Prepared(tuple(map(self._blank, inputs)), bytes(CONTENT_DIGEST_BYTES), (0,) * len(FACTS))
        done = [blank if isinstance(item, DatasetError) else item for item in items]
        content = torch.frombuffer(bytearray(b"".join(one.digest for one in done)), dtype=torch.uint8)
        facts = torch.tensor([one.facts for one in done], dtype=torch.int64)
        unavailable = [str(item) for item in items if isinstance(item, UnavailableError)]
        interleaved = isinstance(self._transform, EightBitTransform)
        stack = _interleaved if interleaved else torch.stack
        views = {view.name: stack([one.tensors[place] for one in done]) for place, view in enumerate(inputs)}
        nothing = torch.empty(
            len(items), self._source.channels, 0, 0, dtype=torch.uint8 if interleaved else torch.float32
        )
        images = views.pop("", nothing)
        return ImageBatch(
            images, content.reshape(len(items), CONTENT_DIGEST_BYTES), failures, facts, unavailable, views
        )

    def _blank(self, view: ViewInput) -> Tensor:
        dtype = torch.uint8 if isinstance(self._transform, EightBitTransform) else torch.float32
        return torch.zeros(self._source.channels, *view.size, dtype=dtype)


def _interleaved(images: list[Tensor]) -> Tensor:
    """Stack 8-bit images ``[C, H, W]`` whose pixels stay interleaved in memory, as decoders give them."""
    channels, height, width = images[0].shape
    batch = np.empty((len(images), height, width, channels), np.uint8)
    for row, image in enumerate(images):
        batch[row] = image.permute(1, 2, 0).numpy()  # row by row; torch copies a crop value by value
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def _covered_size(transform: Any) -> tuple[int, int] | None:
    """Return height and width that an image is resized to cover with its shape kept, pixels; None if it is resized in another way."""
    steps = (
        transform.steps if isinstance(transform, EightBitTransform) else getattr(transform, "transforms", ())
    )
    for step in steps:
        size = getattr(step, "size", None)
        sides = [size] if isinstance(size, int) else list(size or ())
        if type(step).__name__ == "Resize":
            return (int(sides[0]), int(sides[0])) if len(sides) == 1 else None
        if (
            type(step).__name__ == "ResizeKeepRatio"
        ):  # timm's, which fits the image into the size where `longest` is 1
            return (int(sides[0]), int(sides[1])) if not getattr(step, "longest", 0) else None
    return None


def image_batches(
    source: Source,
    transform: Transform,
    batches: Iterable[Rows],
    workers: int,
    size: int | tuple[int, int],
    gpu: torch.device | None = None,
    upright: bool = False,
    views: Mapping[str, tuple[ViewInput, ...]] | None = None,
) -> Iterator[ImageBatch]:
    """Yield one `ImageBatch` for each of `batches`, in order.

    Args:
        source: the images.
        transform: the preprocessing.
        batches: the rows, read in the calling thread.
        workers: processes that decode; 0 decodes in this one.
        size: height and width of a preprocessed image, or the side of a square, pixels.
        gpu: put images into pinned memory, from which this GPU copies while it computes.
        upright: turn images by their EXIF orientation first.
        views: the views that every split needs; the plain one alone if not given.

    Raises:
        WorkerError: a process that decodes was killed, or none can be started.
    """
    load = BatchLoader(source, transform, size, upright, views)
    if workers:
        yield from decode_in_processes(load, batches, workers, gpu)
        return
    for rows in batches:
        batch = load(rows)
        if gpu is not None:
            with torch.cuda.device(gpu):
                batch = batch.map_images(torch.Tensor.pin_memory)
        yield batch
