"""Batches on the device before they are needed: on a GPU the next one is copied while the backbone works on this one."""

from collections.abc import Iterator

import torch

from featcache.extract.images import ImageBatch


def to_device(batches: Iterator[ImageBatch], device: torch.device) -> Iterator[ImageBatch]:
    """Yield `batches` with their images on `device`, in order; from pinned memory to a GPU one batch ahead."""
    if device.type != "cuda":
        for batch in batches:
            yield batch._replace(images=batch.images.to(device))
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[ImageBatch, torch.cuda.Event] | None = None
    for batch in batches:
        ready, ahead = ahead, _copy(batch, device, copying)
        if ready is not None:
            yield _received(*ready)
    if ahead is not None:
        yield _received(*ahead)


def _copy(
    batch: ImageBatch, device: torch.device, stream: torch.cuda.Stream
) -> tuple[ImageBatch, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        copied = batch._replace(images=batch.images.to(device, non_blocking=True))
        return copied, stream.record_event()


def _received(batch: ImageBatch, copied: torch.cuda.Event) -> ImageBatch:
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(copied)
    # The memory was made on the other stream; it must not be given away while this one still reads it.
    batch.images.record_stream(current)
    return batch
