"""The extraction itself: images through the backbone once, pooled tokens of all layers into committed blocks."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.extract.backbones.base import Backbone
from featcache.extract.device import forward_context
from featcache.extract.images import Rows, image_batches
from featcache.extract.sources.base import Sample, Source
from featcache.extract.taps import Taps
from featcache.store.errors import BackboneError
from featcache.store.inventory import SplitInventory
from featcache.store.layers import FINAL
from featcache.store.progress import Update
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.writer import CacheWriter

TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}

NumpyBatch = dict[str, npt.NDArray[np.generic]]


class FeatureExtractor:
    """Turns preprocessed images into the token arrays of a batch, in the stored type.

    Args:
        backbone: the backbone, already on `device`.
        device: where it runs.
        precision: ``fp32`` or ``mixed``.
        kinds: token kinds, in the order stored.
        dtype: stored type of the features.
    """

    def __init__(
        self, backbone: Backbone, device: torch.device, precision: str, kinds: Sequence[str], dtype: str
    ) -> None:
        self._taps = Taps(backbone, kinds)
        self._device = device
        self._precision = precision
        self._dtype = dtype

    @torch.inference_mode()
    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> NumpyBatch:
        """Run one forward pass.

        Args:
            images: ``[B, 3, S, S]`` float32.
            samples: the B samples, to name one in an error.

        Returns:
            ``norm2`` as ``[B, L, K, D]`` and ``final`` as ``[B, 1, K, D]``, bfloat16 as its uint16 bits.

        Raises:
            BackboneError: a value is not finite in the stored type.
        """
        with self._taps as taps, forward_context(self._device, self._precision):
            features = taps.forward(images.to(self._device, non_blocking=True))
        return {name: self._stored(name, values, samples) for name, values in features.items()}

    def _stored(self, name: str, values: Tensor, samples: Sequence[Sample]) -> npt.NDArray[np.generic]:
        stored = values.to(TORCH_DTYPES[self._dtype])
        if not stored.isfinite().all():
            raise self._not_finite(name, values, stored, samples)
        if self._dtype == "bfloat16":
            return stored.view(torch.int16).cpu().numpy().view("<u2")
        return stored.cpu().numpy()

    def _not_finite(
        self, name: str, values: Tensor, stored: Tensor, samples: Sequence[Sample]
    ) -> BackboneError:
        sample, layer = (int(i) for i in (~stored.isfinite()).nonzero()[0][:2])
        place = f"sample {samples[sample].id!r}, layer {FINAL if name == FINAL else layer}"
        if values[sample, layer].isfinite().all():
            peak = values[sample, layer].abs().max().item()
            remedy = "use --dtype float32 or --dtype bfloat16"
            return BackboneError(f"{place}: value {peak:.4g} is too large for {self._dtype}; {remedy}")
        remedy = "the weights may be damaged" if self._precision == "fp32" else "try --precision fp32"
        return BackboneError(f"{place}: the backbone gives values that are not finite; {remedy}")


def run_blocks(
    writer: CacheWriter,
    source: Source,
    extractor: FeatureExtractor,
    transform: Any,
    workers: int,
    update: Update,
) -> int:
    """Extract and commit blocks until none is left that no other process is writing.

    Args:
        writer: the open writer of the cache.
        source: where the images come from.
        extractor: the forward pass.
        transform: the model's own preprocessing.
        workers: processes that decode images; 0 decodes in this one.
        update: called with the samples done and in all, at the start and after every batch.

    Returns:
        The number of samples that this run extracted.

    Raises:
        DatasetError: an image does not decode; blocks that were committed stay.
        BackboneError: a value is not finite in the stored type.
    """
    claimed = _ClaimedBatches(writer)
    loader = iter(image_batches(source, transform, claimed, workers, pin=torch.cuda.is_available()))
    total, extracted = writer.plan.inventory.num_samples, 0
    committed = writer.committed_rows()
    update(committed, total)
    try:
        for images in loader:
            if isinstance(images, Exception):
                raise images
            block, rows = claimed.loaded()
            samples = source.splits[rows.split][rows.start : rows.stop]
            split = writer.plan.inventory.splits[rows.split]
            block.append({**extractor(images, samples), **sample_columns(samples, split)})
            extracted += len(samples)
            if rows.stop == block.block.stop:
                writer.commit(block)
                committed = writer.committed_rows()
                update(committed, total)
            else:
                update(committed + block.rows, total)
    finally:
        # Ends the worker processes now: the traceback of an error would keep them.
        del loader
    return extracted


class _ClaimedBatches:
    """The batches of one block after another, each block claimed when the loader first looks ahead to it."""

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer
        self._ahead: deque[tuple[BlockWriter, Rows]] = deque()

    def __iter__(self) -> Iterator[Rows]:
        while (block := self._writer.claim()) is not None:
            for start in range(
                block.block.start + block.rows, block.block.stop, self._writer.plan.batch_size
            ):
                stop = min(start + self._writer.plan.batch_size, block.block.stop)
                rows = Rows(block.block.split, start, stop)
                self._ahead.append((block, rows))
                yield rows

    def loaded(self) -> tuple[BlockWriter, Rows]:
        """The block and the rows of the batch that the loader has just given out; it keeps the order."""
        return self._ahead.popleft()


def sample_columns(samples: Sequence[Sample], split: SplitInventory) -> Mapping[str, npt.NDArray[np.generic]]:
    """Return the arrays ``label [B]``, ``sample_id [B, bytes]`` and ``valid [B]`` of some samples."""
    ids = np.zeros((len(samples), split.arrays["sample_id"].shape[1]), np.uint8)
    for row, sample in enumerate(samples):
        encoded = sample.id.encode()
        ids[row, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    return {
        "label": np.array([sample.label for sample in samples], "<i8"),
        "sample_id": ids,
        "valid": np.ones(len(samples), np.bool_),
    }
