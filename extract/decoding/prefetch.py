"""Batches on their way to the device: to a GPU they are copied on a stream of their own, while the backbone works."""

from collections.abc import Iterator
from contextlib import suppress

import torch

from featcache.extraction.decoding.images import ImageBatch


def to_device(batches: Iterator[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    """Yield `batches` with their images on `device`, in order.

    To a GPU they go from pinned memory, beside the passes: `FeatureExtractor.start` comes back before its pass has run, so
    the next batches are fetched and copied meanwhile. A batch for which the GPU has no room stays on the host, and the
    extractor copies it in parts.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    for batch in batches:
        if copying is None:
            yield batch._replace(images=batch.images.to(device))
            continue
        with suppress(torch.OutOfMemoryError):
            batch = batch._replace(images=_copy(batch.images, device, copying))
        yield batch


def _copy(images: torch.Tensor, device: torch.device, copying: torch.cuda.Stream) -> torch.Tensor:
    with torch.cuda.stream(copying):
        copied = images.to(device, non_blocking=True)
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(copying)
    # The memory belongs to the other stream, which must not use it again while this one still reads it.
    copied.record_stream(computing)
    return copied
