"""Batches on their way to the device: to a GPU they are copied on a stream of their own, while the backbone works."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import torch

from featcache.extraction.decoding.batch import ImageBatch
from featcache.extraction.decoding.preprocessing import EightBitTransform
from featcache.extraction.decoding.views import Transform


def to_device(
    batches: Iterator[ImageBatch], device: torch.device, transform: Transform
) -> Iterator[ImageBatch]:
    """Yield `batches` in order with their images on `device`, normalized.

    To a GPU they go from pinned memory, beside the passes: `FeatureExtractor.start` comes back before its pass has run, so
    the next batches are fetched and copied meanwhile. A batch for which the GPU has no room stays on the host, and the
    extractor copies it in parts.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    for batch in batches:
        if copying is None:
            yield normalized(batch.map_images(lambda images: images.to(device)), transform)
            continue
        with suppress(torch.OutOfMemoryError):
            batch = normalized(batch.map_images(partial(_copy, device=device, copying=copying)), transform)
        yield normalized(batch, transform)


def normalized(batch: ImageBatch, transform: Transform) -> ImageBatch:
    """Normalize the images of a batch, unless they are floating point already."""
    if batch.images.dtype != torch.uint8 or not isinstance(transform, EightBitTransform):
        return batch
    failed = [row for row, _ in batch.failures]
    return batch.map_images(lambda images: transform.normalize(images, failed))


def _copy(images: torch.Tensor, device: torch.device, copying: torch.cuda.Stream) -> torch.Tensor:
    with torch.cuda.stream(copying):
        copied = images.to(device, non_blocking=True)
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(copying)
    # The memory belongs to the other stream, which must not use it again while this one still reads it.
    copied.record_stream(computing)
    return copied
