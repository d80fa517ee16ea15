"""What an extraction takes of memory at most, as a process of its own: ``python -m extract.peak_memory ROWS [DEVICE]``.

The real pipeline with a tiny backbone and synthetic images: prints the bytes by which the peaks of this process, of the
largest process that decodes, and of the device's allocator lie above what was taken when the first batch came to the disk.
The disk is slower than all else, so whatever may pile up before it does.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing import Value
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from featcache.extraction.forward_pass.extractors import Forward
from featcache.extraction.planning.inventory import plan_inventory
from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.running import writing
from featcache.extraction.running.pipeline import ImageInput, run_blocks
from featcache.extraction.sources.base import Sample, Source
from featcache.store.journal import Plan
from featcache.store.spec import CacheSpec
from featcache.store.targets import SINGLE_LABEL, Targets
from featcache.store.writing import writer as writer_module
from featcache.store.writing.block import BlockWriter
from featcache.store.writing.writer import CacheWriter

from .tiny import SIZE, timm_vit, to_tensor

# 17 kB of features an image, besides its 12 kB of pixels: whatever is kept shows.
EVERYTHING = FeatureSelection(taps=("norm2", "mlp", "block"), tokens="cls,ap,grid2", patches="0,1,2,final")
BATCH_SIZE, WORKERS = 16, 1
# A bound that far fewer images reach than are extracted.
writing.MAX_WAITING_BYTES = 2**20
SLOW_S = 0.03


class Synthetic(Source):
    """As many copies of one image as wanted."""

    name = "synthetic"
    targets = Targets(SINGLE_LABEL, ("one",))
    identity: Mapping[str, object] = {"kind": "synthetic"}

    def __init__(self, rows: int) -> None:
        self._samples = {"train": [Sample(f"image-{row}", 0) for row in range(rows)]}
        self._pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)

    @property
    def splits(self) -> dict[str, list[Sample]]:
        return self._samples

    def image(self, split: str, row: int) -> Image.Image:
        """The one image."""
        return Image.fromarray(self._pixels)


def status_bytes(name: str) -> int:
    """A size that Linux keeps of this process, such as ``VmRSS`` or its peak ``VmHWM``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


class Peaks:
    """By how much the peaks of a process and of its device lie above what was taken at first."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        # Loading has a peak of its own, which would hide others.
        Path("/proc/self/clear_refs").write_text("5")
        self._first = status_bytes("VmRSS")
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._first_on_device = torch.cuda.memory_allocated(self._cuda)

    def grown(self) -> int:
        """Bytes of the process."""
        return status_bytes("VmHWM") - self._first

    def grown_on_device(self) -> dict[str, int]:
        """Bytes of the device, if it has memory of its own."""
        if self._cuda is None:
            return {}
        return {"device": torch.cuda.max_memory_allocated(self._cuda) - self._first_on_device}


class WatchedTransform:
    """Tells, after every image, by how much the process that decodes has grown since its first one."""

    def __init__(self) -> None:
        self.grown = Value("q", 0)
        self._peaks: Peaks | None = None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The preprocessed image ``[3, S, S]``."""
        tensor = to_tensor(image)
        self._peaks = self._peaks or Peaks(torch.device("cpu"))
        self.grown.value = max(self.grown.value, self._peaks.grown())
        return tensor


class SlowWriter(BlockWriter):
    """Takes its time for every batch, and watches this process from the first one on."""

    device = torch.device("cpu")
    peaks: Peaks | None = None

    def append(self, *arguments: Any) -> None:
        SlowWriter.peaks = self.peaks or Peaks(self.device)
        time.sleep(SLOW_S)
        super().append(*arguments)


def main(rows: int, device: torch.device) -> None:
    """Extract `rows` images and print the growth as JSON."""
    backbone, source, transform = timm_vit(), Synthetic(rows), WatchedTransform()
    backbone.module.to(device)
    spec = CacheSpec(backbone.spec, source.identity, "float16", "fp32")
    plan = Plan(spec, plan_inventory(backbone, source, EVERYTHING, "float16"), BATCH_SIZE)
    images = ImageInput(source, transform, SIZE, WORKERS, device)
    writer_module.BlockWriter, SlowWriter.device = SlowWriter, device
    with (
        tempfile.TemporaryDirectory() as folder,
        Forward(backbone, device, False, print).extractors(plan) as extractors,
        CacheWriter(Path(folder), plan) as writer,
    ):
        assert run_blocks(writer, images, extractors, lambda *done: None) == rows
    peaks = SlowWriter.peaks
    assert peaks is not None
    print(json.dumps({"main": peaks.grown(), "decoding": transform.grown.value, **peaks.grown_on_device()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), torch.device(*sys.argv[2:3] or ["cpu"]))
